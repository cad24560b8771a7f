"""How a run is shown while it goes on: a bar that moves, and a line for each epoch (see `sit_deploy.display`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sit_deploy.display import Display
from training.progress import duration

if TYPE_CHECKING:
    from training.progress import Progress
    from training.slim_fit import Fit

_MUCH_WAITING = 0.1  # share of an epoch's time that somebody should know of


@contextlib.contextmanager
def reporting(quiet: bool = False) -> Iterator[TerminalReporter]:
    """Give what shows a run on standard error or in a notebook, for `training.train` and its kin.

        with training.reporting() as reporter:
            train(request, reporter)

    Args:
        quiet: show warnings alone.
    """
    with Display(quiet) as display:
        yield TerminalReporter(display)


class TerminalReporter:
    """Shows a run; a `training.reporter.Reporter`."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def note(self, text: str) -> None:
        self.display.note(text)

    def warn(self, text: str) -> None:
        self.display.warn(text)

    def steps(self, progress: Progress, loss: float) -> None:
        text = f"{progress.text}  loss {loss:.3f}"
        if progress.rate is not None:
            text += f"  {progress.rate:.0f} images/s  {progress.waiting:.0%} waiting for data"
        self.display.moving(text, progress.step, progress.steps)

    def calibrating(self, done: int, total: int) -> None:
        self.display.moving(f"calibrating, {done}/{total} images", done, total)
        if done >= total:
            self.display.clear()

    def fitting(self, share: float, step: int, loss: float) -> None:
        self.display.moving(
            f"fitting TSMs, step {step}  loss {loss:.4f}  {share:.0%}", round(100 * share), 100
        )

    def fitted(self, fit: Fit) -> None:
        self.display.clear()
        self.display.note(
            f"TSMs fitted: {fit.steps} steps  loss {fit.first_loss:.3f} → {fit.last_loss:.4f}  {duration(fit.seconds)}"
        )

    def evaluating(self, done: int, total: int) -> None:
        self.display.moving(f"validating, {done}/{total} batches", done, total)
        if done >= total:
            self.display.clear()

    def epoch(self, row: dict[str, Any], progress: Progress) -> None:
        self.display.clear()
        parts = [f"epoch {progress.epoch}/{progress.epochs}"]
        if "train_loss" in row:
            parts.append(f"loss {row['train_loss']:.3f}")
        parts.append(f"top-1 {row['top1']:.2f} %")
        if "lr" in row:
            parts.append(f"lr {row['lr']:.2g}")
        if "images_per_second" in row:
            parts.append(f"{row['images_per_second']:.0f} images/s")
        if "seconds" in row:
            parts.append(duration(row["seconds"]))
        if progress.left is not None and progress.epoch < progress.epochs:
            parts.append(f"{duration(progress.left)} left")
        if row.get("waiting_for_data", 0) > _MUCH_WAITING:
            parts.append(f"[yellow]{row['waiting_for_data']:.0%} waiting for data[/]")
        if row.get("damaged_images"):
            parts.append(f"[yellow]{row['damaged_images']} damaged images skipped[/]")
        self.display.line("  ".join(parts))
