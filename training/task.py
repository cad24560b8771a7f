"""What one training step computes, as timm's `TrainingTask`: plain classification, or FRD with its frozen teachers.

`TrainingTask` fits: it knows DDP, EMA, compilation and gradient accumulation, and leaves the loss to its subclass. What
it calls the trainable module is here a thin wrapper whose forward is the one that training needs, so that DDP and
torch.compile see it; `model` is the SiT inside, which is what gets evaluated and saved.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sit_deploy.models import FRDOutput
from training.frd import frd_loss


class Classifying(nn.Module):
    """A SiT whose forward is that of inference: images (B, 3, H, W) → FRDOutput of the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> FRDOutput:
        return FRDOutput(self.model(images), None, [])


class Recovering(nn.Module):
    """A SiT whose forward gives what FRD compares: images (B, 3, H, W) → FRDOutput, without tokens if none are wanted."""

    def __init__(self, model: nn.Module, tokens: bool = True) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, images: Tensor) -> FRDOutput:
        return self.model.forward_frd(images, self.tokens)


class Renormalising(nn.Module):
    """A classifier whose images are normalised in its own way: the student's images (B, 3, H, W) → logits (B, classes).

    Args:
        model: the classifier.
        normalisation: (gain, offset), each (1, 3, 1, 1), that take the student's normalised images to its own.
    """

    def __init__(self, model: nn.Module, normalisation: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.model = model
        for name, value in zip(("gain", "offset"), normalisation, strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.gain + self.offset)


class Task(TrainingTask):
    """What both tasks share. forward: images (B, 3, H, W), soft targets (B, classes) → {"loss", "output", parts...}."""

    def __init__(self, module: Classifying | Recovering, device: torch.device) -> None:
        super().__init__(device=device, verbose=False)
        self.model = module.model
        self.trainable_module = module

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> Task:
        """Wrap what is trained, and only that, in DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> nn.Module:
        """Compile the forward pass of what is trained; evaluation stays as it is."""
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **kwargs)
        return self.trainable_module

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the SiT to evaluate and save: the trained one, or its average."""
        if not ema:
            return self.model
        averaged = self.get_trainable_module(ema=True)
        return None if averaged is None else averaged.module.model


class ClassificationTask(Task):
    """Cross-entropy."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(Classifying(model), device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        output = self.trainable_module(input)
        return {"loss": cross_entropy(output.logits, target), "output": output.logits}


class FRDTask(Task):
    """Feature Recalibration Distillation (arXiv 2111.12624, section 3.3).

    The teachers are frozen, in eval mode whatever mode the task is in, under no_grad, and outside DDP. It takes more than seven
    arguments: three models, and the weights of the paper's loss by their names.

    Args:
        student: a SiT, with reverse TSMs unless the tokens weigh nothing.
        teacher: the unslimmed model.
        device: of all of them.
        token_weight: see `frd_loss`.
        logits_weight: likewise.
        temperature: likewise.
        hard_label_weight: likewise.
        cnn_teacher: an extra teacher whose class the student's dist token learns.
        cnn_normalisation: (gain, offset), each (1, 3, 1, 1), that take the student's normalised images to the CNN's;
            None: the same.
    """

    def __init__(  # noqa: PLR0913
        self,
        student: nn.Module,
        teacher: nn.Module,
        device: torch.device,
        *,
        token_weight: float = 2.0,
        logits_weight: float = 2.0,
        temperature: float = 1.0,
        hard_label_weight: float = 0.0,
        cnn_teacher: nn.Module | None = None,
        cnn_normalisation: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(Recovering(student, tokens=bool(token_weight)), device)
        self.weights = {
            "token_weight": token_weight,
            "logits_weight": logits_weight,
            "temperature": temperature,
            "hard_label_weight": hard_label_weight,
        }
        # terms that there are none of: neither reported nor, as far as they cost, computed
        self.absent = {
            name
            for name, present in (
                ("tokens", token_weight),
                ("hard", cnn_teacher is not None),
                ("hard_label", hard_label_weight),
            )
            if not present
        }
        self.teacher = Recovering(teacher, tokens=bool(token_weight)).requires_grad_(False)
        self.cnn_teacher = None
        if cnn_teacher is not None:
            normalisation = cnn_normalisation or (torch.ones(1), torch.zeros(1))
            self.cnn_teacher = Renormalising(cnn_teacher, normalisation).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FRDTask:
        super().train(mode)
        for teacher in (self.teacher, self.cnn_teacher):
            if teacher is not None:
                teacher.eval()
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> nn.Module:
        self.teacher = torch.compile(self.teacher, backend=backend, mode=mode, **kwargs)
        return super().compile(backend, mode, **kwargs)

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[FRDOutput, Tensor | None]:
        if self.cnn_teacher is None:
            return self.teacher(images), None
        return self.teacher(images), self.cnn_teacher(images)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        teacher, cnn_logits = self._teach(input)
        student = self.trainable_module(input)
        loss = frd_loss(student, teacher, target, cnn_logits, **self.weights)
        absent = {"total", *self.absent}
        parts = {name: value.detach() for name, value in loss._asdict().items() if name not in absent}
        return {"loss": loss.total, "output": student.logits, **parts}
