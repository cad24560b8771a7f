"""The weights that a run leaves, with their model card: those of its best epoch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from engines.errors import EngineError
from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.models.hub import place_of
from sit_deploy.text import utf8_text
from training.metrics import Metrics
from training.qat import GRID, THRESHOLD, thresholds_of
from training.run import Run
from training.run_files import WEIGHTS

# trained, or carried along, but not needed to run the model
UNUSED = ("rtsm.", "aux_head.")


def keep_best(run: Run, metrics: Metrics, epoch: int) -> None:
    """Write the weights of this epoch if they are the best so far: by top-1, then by loss."""
    best = run.position.best
    if best and (best["top1"], -best["loss"]) >= (metrics.top1, -metrics.loss):
        return
    run.position.best = {"epoch": epoch, **metrics.to_dict()}
    if run.world.is_main:
        save_best(run, weights_of(run.evaluated().state_dict()), run.position.best)


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict that inference needs, on the CPU."""
    return {
        k: v.detach().cpu().contiguous()
        for k, v in state.items()
        if not k.startswith(UNUSED) and not k.endswith(THRESHOLD)
    }


def save_best(run: Run, weights: dict[str, Tensor], metrics: dict[str, Any]) -> None:
    """Write the best weights so far with their card."""
    path = run.request.output / WEIGHTS
    try:
        save_weights(path, weights, card_of(run, metrics))
    except EngineError as error:
        raise InputError(f"{error}; free some space, then go on with --resume") from None


def card_of(run: Run, metrics: dict[str, Any]) -> ModelCard:
    """Return the card of what a run trains."""
    models, request = run.models, run.request
    training = {
        "data": utf8_text(run.data.name),
        "start": utf8_text(models.start),
        "teacher": utf8_text(place_of(request.teacher)) if request.teacher else None,
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
        keeping_ratio=None if models.config.kept else models.config.keeping_ratio,
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
