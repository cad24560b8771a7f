"""Optimiser and learning rate of a recipe, from timm's factories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from training.recipes import Recipe

SMALL_BATCH = 512  # below it the lowest rates scale with the batch as the highest does
WARM_UP = 1e-6  # the rate that a warm-up begins with, at 512 images and more


@dataclass(frozen=True)
class Rates:
    """Learning rates of a run: where a warm-up starts, the highest, and where the cosine and the cool-down end."""

    warm_up: float
    peak: float
    floor: float


def rates_of(recipe: Recipe, total_batch: int) -> Rates:
    """Return the learning rates of a recipe at so many images a step, in ascending order: warm-up, floor, peak.

    The peak scales with the batch. The floor is the recipe's at 512 images and more, as in the official code, and scales
    like the peak below, where it would soon lie above it.
    """
    share = total_batch / 512
    low = min(1.0, total_batch / SMALL_BATCH)
    peak = recipe.lr * share
    floor = min(recipe.min_lr * low, peak)
    return Rates(min(WARM_UP * low, floor), peak, floor)


def parameter_groups(model: nn.Module, recipe: Recipe, total_batch: int) -> list[dict[str, Any]]:
    """Split what is trained into groups with their learning rates and weight decays, as the official code does.

    No decay on vectors, and on class, dist and position tokens; on every parameter of the reverse TSMs, and on the TSM's
    scalar, which is no vector there. Reverse TSMs learn `rtsm_lr_scale` times as fast.
    """
    lr = rates_of(recipe, total_batch).peak
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups: dict[str, dict[str, Any]] = {
        "reverse TSMs": {"lr": lr * recipe.rtsm_lr_scale, "weight_decay": recipe.weight_decay},
        "no decay": {"lr": lr, "weight_decay": 0.0},
        "decay": {"lr": lr, "weight_decay": recipe.weight_decay},
    }
    for group in groups.values():
        group["params"] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("rtsm."):
            kind = "reverse TSMs"
        else:
            kind = "no decay" if parameter.ndim <= 1 or name in exempt else "decay"
        groups[kind]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def make_optimiser(model: nn.Module, recipe: Recipe, total_batch: int) -> Optimizer:
    """Return AdamW over `parameter_groups`."""
    from timm.optim import create_optimizer_v2

    lr = rates_of(recipe, total_batch).peak
    return create_optimizer_v2(parameter_groups(model, recipe, total_batch), opt="adamw", lr=lr)


def make_schedule(optimiser: Optimizer, recipe: Recipe, steps_per_epoch: int, total_batch: int) -> Any:
    """Return timm's cosine schedule, by epoch or by step, with warm-up and cooldown as the recipe says."""
    from timm.scheduler import create_scheduler_v2

    rates = rates_of(recipe, total_batch)
    schedule, _ = create_scheduler_v2(
        optimiser,
        "cosine",
        num_epochs=recipe.epochs,
        min_lr=rates.floor,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=rates.warm_up,
        cooldown_epochs=recipe.cooldown_epochs,
        step_on_epochs=not recipe.lr_per_step,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


def set_learning_rate(schedule: Any, recipe: Recipe, epoch: int, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate for step `step` of `epoch`; a function of the two alone, so that a resumed run has the same.

    It is never above what the group starts from: the floor is one for all, and reverse TSMs may be asked to learn more slowly.
    """
    if recipe.lr_per_step:
        schedule.step_update(epoch * steps_per_epoch + step)
    else:
        schedule.step(epoch)
    for group in schedule.optimizer.param_groups:
        group["lr"] = min(group["lr"], group["initial_lr"])
