"""Losses, speed and waiting of an epoch of training, and whether it has diverged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from sit_deploy.errors import Error, InputError
from training.run import Run

FEW = 5  # steps of which a time can be told, and that are looked at one by one


class DivergedError(Error):
    """The loss or a weight is no finite number any more; the last good state is on disk."""


class LossMeter:
    """Losses, speed and waiting of an epoch; losses stay on the device until they are looked at."""

    def __init__(self, run: Run, epoch: int) -> None:
        self.run, self.epoch = run, epoch
        self.pending: list[dict[str, Tensor]] = []  # since the last check
        self.first = run.position.step
        self.waited = 0.0
        self.started = self.looked = time.perf_counter()
        self.paced = self.first  # steps of the epoch that the run's pace knows of

    def waiting(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the next batch, and count the time that it took to come."""
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            raise InputError("the data set ended before its epoch did; its length is not what it says")
        self.waited += time.perf_counter() - before
        return batch

    def add(self, result: dict[str, Tensor]) -> None:
        """Take note of the losses of a pass."""
        self.pending.append({k: v.detach() for k, v in result.items() if k != "output"})

    def check(self, done: int) -> None:
        """Take in the losses since the last check, as means over all processes; every process must call it.

        Raises:
            DivergedError: one of them is no finite number.
        """
        position, accumulate = self.run.position, self.run.request.accumulate
        names = list(self.pending[0])
        values = torch.stack([torch.stack([row[n].float() for n in names]) for row in self.pending])
        values = (self.run.world.sum(values) / self.run.world.size).tolist()
        self.pending = []
        first = done - len(values) // accumulate
        for i, row in enumerate(values):
            if not math.isfinite(row[names.index("loss")]):
                self._diverged("the loss is not finite", first + i // accumulate + 1)
            for name, value in zip(names, row, strict=True):
                for sums in (position.sums, position.window):
                    sums[name] = sums.get(name, 0.0) + value / accumulate
        position.window_steps += len(values) // accumulate
        self._show(done)

    def _show(self, done: int) -> None:
        """Take note of the time, and show where the run is."""
        run, position, now = self.run, self.run.position, time.perf_counter()
        position.seconds += now - self.looked
        run.pace.trained(done - self.paced, now - self.looked)
        self.looked, self.paced = now, done
        if not run.world.is_main:
            return
        progress = run.progress(self.epoch, done, self.rate(done), self.waited / (now - self.started))
        run.reporter.steps(progress, position.window["loss"] / position.window_steps)
        if not run.told_time and (run.pace.steps >= FEW or done == run.loaders.steps):
            run.told_time = True
            run.reporter.note(run.expected(self.epoch, done))

    def require_finite_weights(self, done: int) -> None:
        """Refuse to save what a resumed run could not use.

        Raises:
            DivergedError: a weight is no finite number, though every loss was.
        """
        finite = torch.stack([p.isfinite().all() for p in self.run.task.model.parameters()]).all()
        if not finite:
            self._diverged("a weight is not finite", done)

    def _diverged(self, what: str, step: int) -> None:
        where = f"{what} at step {step} of epoch {self.epoch + 1}"
        good = last_good(self.run)
        raise DivergedError(f"{where}; {good}; start again with a smaller --lr, or with --clip-grad 1")

    def rate(self, done: int) -> float:
        """Images a second over all processes since the start of the epoch, or of the resumed rest of it."""
        return (done - self.first) * self.run.total_batch / (time.perf_counter() - self.started)

    def log(self, done: int) -> None:
        """Write a row with the mean losses since the last one."""
        run, position = self.run, self.run.position
        means = {name: value / position.window_steps for name, value in position.window.items()}
        position.window, position.window_steps = {}, 0
        if run.log is not None:
            step = self.epoch * run.loaders.steps + done
            run.log.write("step", step, **means, lr=learning_rate(run))

    def means(self) -> dict[str, float]:
        """Mean losses of the epoch, images a second, and the share of time spent waiting for images."""
        position = self.run.position
        losses = {f"train_{name}": value / position.step for name, value in position.sums.items()}
        waited = self.waited / (time.perf_counter() - self.started)
        return {**losses, "images_per_second": self.rate(position.step), "waiting_for_data": waited}


def last_good(run: Run) -> str:
    """Say which state a run that diverged can be resumed from."""
    return f"the last good state is {run.last}" if run.last.exists() else "there is no earlier state"


def learning_rate(run: Run) -> float:
    """Return the learning rate of all but the reverse TSMs."""
    return max(g["lr"] for g in run.optimiser.param_groups if g["name"] != "reverse TSMs")
