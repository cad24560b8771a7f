"""PyTorch models as candidates of a timing: the student, its deploy form and the teacher, run on random batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engines
from engines.cpu import cpu_count
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.validation.reference import reference_model, teacher_model

# What PyTorch runs in on a GPU beside an engine of each precision: its own fastest type of no more rounding, or FP16
# where the engine has 8 bits, which eager PyTorch has not.
_TORCH_TYPE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float16", "fp8": "float16"}


def torch_device(kind: str, device: str | None, precision: str) -> tuple[str, str]:
    """Return where PyTorch runs and in what type, to be compared with an engine."""
    on_gpu = not engines.get(kind).on_cpu or (device or "cpu").startswith("cuda")
    if not on_gpu:
        return "cpu", "float32"
    number = (device or "cuda").partition(":")[2] or "0"
    return f"cuda:{number}", _TORCH_TYPE[precision]


class TorchCall:
    """A worker's callable that runs the bundle's PyTorch model on one random batch, from host memory to host memory.

    Args (all picklable): device: "cpu" or "cuda:N".

    Attributes:
        dtype: of weights and activations; images and logits stay float32 on the host, as with the engine.
    """

    def __init__(
        self,
        bundle: Path,
        checkpoint: Path | None,
        batch_size: int,
        threads: int | None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        import torch

        # PyTorch would start as many as it sees CPUs, and they wait for one another where a container has the time of fewer
        torch.set_num_threads(threads or min(torch.get_num_threads(), cpu_count()))
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        opened = load_bundle(bundle)
        self._model = self.make_model(opened, checkpoint).to(self._device, self._dtype)
        size = opened.manifest.model.image_size
        images = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(0))
        self.last_gpu_seconds: float | None = None
        self._events: tuple[Any, Any] | None = None
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False  # as the engine: float32 means float32
            torch.backends.cudnn.allow_tf32 = False
            images = images.pin_memory()
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        self._images = images

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Path | None) -> Any:
        """Return the model to time, in eval mode."""
        from sit_deploy.models.outputs import with_outputs

        return with_outputs(reference_model(bundle, checkpoint), [one.name for one in bundle.outputs])

    def __call__(self) -> None:
        import torch

        with torch.inference_mode():
            images = self._images.to(self._device, non_blocking=True)
            if self._events is None:
                self._model(images.to(self._dtype))
                return
            started, ended = self._events
            started.record()
            given = self._model(images.to(self._dtype))
            given = [values.float() for values in (given if isinstance(given, tuple) else (given,))]
            ended.record()
            for values in given:
                values.cpu()  # waits
            ended.synchronize()
            self.last_gpu_seconds = started.elapsed_time(ended) / 1e3


class DeployCall(TorchCall):
    """A worker's callable of the deploy form in PyTorch."""

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Path | None) -> Any:
        from sit_deploy.graph.deploy_form import to_deploy_form

        return to_deploy_form(reference_model(bundle, checkpoint), [one.name for one in bundle.outputs])


class TeacherCall(TorchCall):
    """A worker's callable of the teacher in PyTorch; its checkpoint is a `TeacherSource`."""

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Any) -> Any:
        return teacher_model(bundle, checkpoint)
