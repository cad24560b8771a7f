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
from sit_deploy.models.comparison import Comparison
from sit_deploy.processes import World
from training.loaders import Loaders, gather_damaged
from training.log import Log
from training.make_models import Models
from training.plan import Plan
from training.progress import Pace, Progress, duration
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
    cost: Comparison
    position: Position = field(default_factory=Position)
    pace: Pace = field(default_factory=Pace)
    told_time: bool = False  # whether it has been said how long the run is likely to take
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

    def progress(self, epoch: int, step: int, rate: float | None = None, waiting: float = 0.0) -> Progress:
        """Return where the run is after `step` steps of `epoch`, counted from 0; see `Progress` for the others."""
        left = self.pace.left(*self._left(epoch, step))
        return Progress(epoch + 1, self.epochs, step, self.loaders.steps, left, rate, waiting)

    def _left(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the steps, and the passes over the held-out images, that are left; those of the end too."""
        passes = self.epochs - epoch + (1 if self.models.teacher is None else 2)
        return (self.epochs - epoch) * self.loaders.steps - step, passes

    def expected(self, epoch: int, step: int) -> str:
        """Say how long the rest of the run is likely to take, and what makes it up."""
        steps, passes = self._left(epoch, step)
        each, look = self.pace.step, self.pace.validation
        assert each is not None
        text = f"{steps} steps of {each:.2g} s" if steps else ""
        looks = f"{passes} validations" + (f" of {look:.2g} s" if look is not None else ", not timed yet")
        return f"Expected: {duration(self.pace.left(steps, passes) or 0)} from here, for {' and '.join(filter(None, (text, looks)))}"

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
