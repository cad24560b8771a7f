"""What a run leaves behind: the best weights with their card, the curves, and a summary of teacher and student."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engines.errors import EngineError
from sit_deploy.errors import InputError
from sit_deploy.files import write_whole
from sit_deploy.models import CONFIGS, ModelConfig
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.models.cost import cost
from training.log import draw_curves
from training.metrics import Metrics, evaluate
from training.qat import GRID, THRESHOLD, thresholds_of
from training.text import text_of

if TYPE_CHECKING:
    from training.set_up import Run

WEIGHTS = "model.safetensors"
SUMMARY = "summary.json"
# trained, or carried along, but not needed to run the model
UNUSED = ("rtsm.", "aux_head.")


@dataclass(frozen=True)
class Side:
    """One model of the summary: macs of one image; tokens of each stage; top1, top5 in percent."""

    name: str
    macs: int
    tokens: tuple[int, ...]
    top1: float
    top5: float


@dataclass(frozen=True)
class Summary:
    """A finished run.

    agreement, kl: of the student with its teacher (see `Metrics`). retained: percent of its top-1. int8: whether the
    student's figures are those of its fake-quantized form. plan, recipe: what was done, as plain values.
    """

    weights: Path
    curves: Path
    images: int
    best_epoch: int
    epochs: int
    seconds: float
    damaged_images: int
    student: Side
    int8: bool = False
    teacher: Side | None = None
    agreement: float | None = None
    kl: float | None = None
    num_classes: int | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def retained(self) -> float | None:
        return 100 * self.student.top1 / self.teacher.top1 if self.teacher and self.teacher.top1 else None

    def to_dict(self) -> dict[str, Any]:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {**plain, "retained": self.retained}


def keep_best(run: Run, metrics: Metrics, epoch: int) -> None:
    """Write the weights of this epoch if they are the best so far: by top-1, then by loss."""
    best = run.position.best
    if best and (best["top1"], -best["loss"]) >= (metrics.top1, -metrics.loss):
        return
    run.position.best = {"epoch": epoch, **metrics.to_dict()}
    if run.world.is_main:
        _save(run, weights_of(run.evaluated().state_dict()), run.position.best)


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict that inference needs, on the CPU."""
    return {
        k: v.detach().cpu().contiguous()
        for k, v in state.items()
        if not k.startswith(UNUSED) and not k.endswith(THRESHOLD)
    }


def _save(run: Run, weights: dict[str, Tensor], metrics: dict[str, Any]) -> None:
    path = run.request.output / WEIGHTS
    try:
        save_weights(path, weights, card_of(run, metrics))
    except EngineError as error:
        raise InputError(f"{error}; free some space, then go on with --resume") from None


def card_of(run: Run, metrics: dict[str, Any]) -> ModelCard:
    """Return the card of what a run trains."""
    models, request = run.models, run.request
    training = {
        "data": text_of(run.data.name),
        "start": text_of(models.start),
        "teacher": text_of(request.teacher) if request.teacher else None,
        "teacher_model": models.teacher_config.name if models.teacher_config else None,
        "recipe": asdict(run.recipe),
        "total_batch": run.total_batch,
        "seed": request.seed,
        "averaged": run.task.has_ema(),
        "preprocessing_source": models.choice.sources,
    }
    quantization = None
    if request.qat:
        training |= {"qat_images": request.qat_images, "qat_skip": list(request.qat_skip)}
        quantization = {"grid": GRID, "thresholds": thresholds_of(models.model)}
    return ModelCard(
        name=models.config.name,
        stages=models.config.stage_blocks,
        keeping_ratio=models.config.keeping_ratio,
        tokens=tuple(models.model.kept),
        image_size=models.preprocessing.size[0],
        num_classes=run.data.num_classes,
        preprocessing=models.preprocessing,
        dist_token=models.model.has_dist_token,
        classes=tuple(run.data.classes) if run.data.classes else None,
        metrics=metrics,
        training=training,
        quantization=quantization,
    )


def count_macs(config: ModelConfig, model: nn.Module) -> int:
    """Return the multiply-accumulates of one image: in closed form for named models, else products and convolutions."""
    if config.name in CONFIGS:
        return cost(config, model.img_size[0], model.num_classes).macs
    from torch.utils.flop_counter import FlopCounterMode

    mode, parameter = model.training, next(model.parameters())
    image = torch.zeros(1, model.in_chans, *model.img_size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    model.train(mode)
    return counter.get_total_flops() // 2


def _draw(run: Run, teacher_top1: float | None) -> None:
    """Draw the curves; that they cannot be drawn takes nothing from what was trained."""
    title = f"{run.models.config.name} on {text_of(run.data.name)}"
    try:
        draw_curves(run.request.output, title, teacher_top1)
    except Exception as error:  # of any type: of fonts, of a folder for them, of a full disk
        run.reporter.warn(f"the curves could not be drawn ({' '.join(str(error).split())[:200]})")


def finish(run: Run) -> Summary:
    """Measure the best weights and the teacher on the held-out images; write summary, card and curves."""
    from safetensors.torch import load

    from training.loaders import count_damaged

    best, models = run.position.best, run.models
    run.world.barrier()
    path = run.request.output / WEIGHTS
    model = run.task.model
    kept = load(path.read_bytes())  # by way of bytes: the format's own reader takes no path that is no UTF-8
    model.load_state_dict({**model.state_dict(), **kept})
    model.to(run.world.device)

    teacher = run.models.teacher
    metrics = evaluate(model, run.loaders.val, run.world, teacher, run.autocast)
    teacher_metrics = None
    if teacher is not None:
        teacher_metrics = evaluate(teacher, run.loaders.val, run.world, autocast=run.autocast)
    damaged = count_damaged(run.loaders, run.world)
    sides = [
        Side(
            c.name,
            count_macs(c, m),
            tuple(m.kept),
            scores.top1,
            scores.top5,
        )
        for c, m, scores in (
            (models.config, model, metrics),
            (models.teacher_config, teacher, teacher_metrics),
        )
        if scores is not None
    ]
    summary = Summary(
        weights=path,
        curves=run.request.output / "curves.png",
        images=metrics.images,
        num_classes=run.data.num_classes,
        best_epoch=best["epoch"],
        epochs=run.epochs,
        seconds=round(run.position.seconds, 1),
        damaged_images=damaged,
        student=sides[0],
        int8=run.request.qat,
        teacher=sides[1] if len(sides) > 1 else None,
        agreement=metrics.agreement,
        kl=metrics.kl,
        plan=run.plan.to_dict(),
        recipe=asdict(run.recipe),
    )
    if run.world.is_main:
        figures = {**best, **metrics.to_dict()}
        if teacher_metrics is not None:
            figures |= {"teacher_top1": teacher_metrics.top1, "retained": summary.retained}
        _save(run, kept, figures)
        write_whole(run.request.output / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
        _draw(run, teacher_metrics.top1 if teacher_metrics else None)
    run.world.barrier()
    return summary
