"""A training run while it goes on: what it computes with, where it is, and how its state is saved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from sit_deploy.data.datasets import Data
from sit_deploy.processes import World
from training.loaders import Loaders, gather_damaged
from training.log import Log
from training.make_models import Models
from training.plan import Plan
from training.progress import Pace, Progress
from training.recipes import Recipe
from training.reporter import Reporter
from training.request import TrainRequest
from training.run_files import LAST, unwritable
from training.state import Position, save_state
from training.task import Task

DAMAGED = "damaged"  # the name that the flags of damaged images have among the saved parts


class _FixedState:
    """A state that is what it is."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state


@dataclass
class Run:
    """A run: what it computes, on what, and where it is."""

    request: TrainRequest
    recipe: Recipe
    world: World
    reporter: Reporter
    data: Data
    models: Models
    loaders: Loaders
    mix: Callable
    task: Task
    optimiser: Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager]
    identity: dict[str, Any]
    position: Position = field(default_factory=Position)
    pace: Pace = field(default_factory=Pace)
    log: Log | None = None
    names_damaged: bool = True  # until one has been named
    notes: list[str] = field(default_factory=list)  # to be said before the first step
    warnings: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return self.recipe.epochs + self.recipe.cooldown_epochs

    @property
    def total_batch(self) -> int:
        """Images of one step, over all processes."""
        return self.recipe.batch_size * self.request.accumulate * self.world.size

    @property
    def plan(self) -> Plan:
        return Plan.of(self.recipe, len(self.data.train), self.total_batch, self.loaders.steps)

    def progress(self, epoch: int, step: int) -> Progress:
        """Return where the run is after `step` steps of `epoch`, counted from 0."""
        steps = self.loaders.steps
        passes = self.epochs - epoch + (1 if self.models.teacher is None else 2)  # those of the end too
        left = self.pace.left((self.epochs - epoch) * steps - step, passes)
        return Progress(epoch + 1, self.epochs, step, steps, left)

    @property
    def last(self) -> Path:
        return self.request.output / LAST

    def parts(self) -> dict[str, Any]:
        """Return what has a state to save."""
        parts = {
            "model": self.task.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        if self.task.has_ema():
            parts["ema"] = self.task.get_eval_model(ema=True)
        return parts

    def open(self) -> None:
        """Open the log, if this is the main process.

        Raises:
            InputError: it cannot be written to, or TensorBoard is asked for and not installed.
        """
        if not self.world.is_main:
            return
        folder = self.request.output
        try:
            self.log = Log(folder, self.position.log_bytes, self.request.tensorboard)
        except OSError as error:
            raise unwritable(folder, error) from None

    def save(self) -> None:
        """Write last.pt, if this is the main process."""
        damaged = gather_damaged(self.loaders, self.world)
        if self.world.is_main:
            self.position.log_bytes = self.log.length
            parts = {**self.parts(), DAMAGED: _FixedState(dict(zip(("train", "val"), damaged, strict=False)))}
            save_state(self.last, self.identity, self.position, parts)
        self.world.barrier()

    def evaluated(self) -> torch.nn.Module:
        """Return the model whose accuracy counts: the averaged one where there is one."""
        return self.task.get_eval_model(ema=self.task.has_ema())
