"""Optimiser and learning rate of a recipe, from timm's factories."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from training.recipes import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe, total_batch: int) -> list[dict[str, Any]]:
    """Split what is trained into groups with their learning rates and weight decays, as the official code does.

    No decay on vectors, and on class, dist and position tokens; on every parameter of the reverse TSMs, and on the TSM's
    scalar, which is no vector there. Reverse TSMs learn `rtsm_lr_scale` times as fast.
    """
    lr = recipe.lr * total_batch / 512
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

    lr = recipe.lr * total_batch / 512
    return create_optimizer_v2(parameter_groups(model, recipe, total_batch), opt="adamw", lr=lr)


def make_schedule(optimiser: Optimizer, recipe: Recipe, steps_per_epoch: int) -> Any:
    """Return timm's cosine schedule, by epoch or by step, with warm-up and cooldown as the recipe says."""
    from timm.scheduler import create_scheduler_v2

    schedule, _ = create_scheduler_v2(
        optimiser,
        "cosine",
        num_epochs=recipe.epochs,
        min_lr=recipe.min_lr,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=min(1e-6, recipe.min_lr),
        cooldown_epochs=recipe.cooldown_epochs,
        step_on_epochs=not recipe.lr_per_step,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


def set_learning_rate(schedule: Any, recipe: Recipe, epoch: int, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate for step `step` of `epoch`; a function of the two alone, so that a resumed run has the same."""
    if recipe.lr_per_step:
        schedule.step_update(epoch * steps_per_epoch + step)
    else:
        schedule.step(epoch)
