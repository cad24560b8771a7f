"""The end of a run: its best weights and its teacher measured side by side, in a summary, and its curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sit_deploy.files import write_whole
from sit_deploy.models.catalog import title
from sit_deploy.text import utf8_text
from training.best_weights import save_best
from training.curves import draw_curves
from training.loaders import count_damaged
from training.metrics import evaluate
from training.run import Run
from training.run_files import CURVES, SUMMARY, WEIGHTS


@dataclass(frozen=True)
class Side:
    """One model of the summary.

    Attributes:
        macs: of one image.
        tokens: of each stage.
        top1, top5: in percent.
        parameters: without reverse TSMs.
        title: its name and, where that alone does not say how it slims, its stages: a student may have its teacher's name.
    """

    name: str
    macs: int
    tokens: tuple[int, ...]
    top1: float
    top5: float
    parameters: int
    title: str = ""


@dataclass(frozen=True)
class Summary:
    """A finished run.

    Attributes:
        agreement, kl: of the student with its teacher (see `Metrics`).
        retained: percent of its top-1.
        int8: whether the student's figures are those of its fake-quantized form.
        seconds: of the steps of training, without validation.
        warm_start: steps, seconds and losses of fitting the TSMs before the first step (`training.slim_fit.Fit`); None where there was none.
        macs_ratio: how many times fewer multiply-accumulates than its teacher's, or than the model's without slimming; None of a model that
            slims nothing.
        train_folder, val_folder: of the images, where they are folders.
        plan, recipe: what was done, as plain values.
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
    macs_ratio: float | None = None
    warm_start: dict[str, float] | None = None
    train_folder: Path | None = None
    val_folder: Path | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def retained(self) -> float | None:
        return 100 * self.student.top1 / self.teacher.top1 if self.teacher and self.teacher.top1 else None

    def to_dict(self) -> dict[str, Any]:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {**plain, "retained": self.retained}


def _draw(run: Run, teacher_top1: float | None) -> None:
    """Draw the curves; that they cannot be drawn takes nothing from what was trained."""
    heading = f"{title(run.models.config)} on {utf8_text(run.data.name)}"
    try:
        draw_curves(run.request.output, heading, teacher_top1)
    except Exception as error:  # of any type: of fonts, of a folder for them, of a full disk
        run.reporter.warn(f"the curves could not be drawn ({' '.join(str(error).split())[:200]})")


def finish(run: Run) -> Summary:
    """Measure the best weights and the teacher on the held-out images; write summary, card and curves."""
    from safetensors.torch import load

    best = run.position.best
    run.world.barrier()
    path = run.request.output / WEIGHTS
    model = run.task.model
    kept = load(path.read_bytes())  # by way of bytes: the format's own reader takes no path that is no UTF-8
    model.load_state_dict({**model.state_dict(), **kept})
    model.to(run.world.device)

    teacher = run.models.teacher
    batches = len(run.loaders.val)
    passes = 1 if teacher is None else 2

    def showing(part: int) -> Callable[[int], None]:
        return lambda done: run.reporter.evaluating(part * batches + done, passes * batches)

    metrics = evaluate(model, run.loaders.val, run.world, teacher, run.autocast, showing(0))
    teacher_metrics = None
    if teacher is not None:
        teacher_metrics = evaluate(teacher, run.loaders.val, run.world, None, run.autocast, showing(1))
    damaged = count_damaged(run.loaders, run.world)
    costs = [run.cost.model, *([run.cost.unslimmed] if run.cost.unslimmed and teacher is not None else [])]
    sides = [
        Side(cost.name, cost.macs, cost.tokens, scores.top1, scores.top5, cost.parameters, cost.title)
        for cost, scores in zip(costs, filter(None, (metrics, teacher_metrics)), strict=True)
    ]
    folders = run.data.folders or (None, None)
    summary = Summary(
        weights=path,
        curves=run.request.output / CURVES,
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
        macs_ratio=run.cost.macs_ratio,
        warm_start=run.position.fit or None,
        train_folder=folders[0],
        val_folder=folders[1],
        plan=run.plan.to_dict(),
        recipe=asdict(run.recipe),
    )
    if run.world.is_main:
        figures = {**best, **metrics.to_dict()}
        if teacher_metrics is not None:
            figures |= {"teacher_top1": teacher_metrics.top1, "retained": summary.retained}
        save_best(run, kept, figures)
        write_whole(run.request.output / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
        _draw(run, teacher_metrics.top1 if teacher_metrics else None)
    run.world.barrier()
    return summary
