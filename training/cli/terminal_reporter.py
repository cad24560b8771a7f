"""How a run is shown while it goes on: a bar on a terminal, and lines on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sit_deploy.cli.common import console, literal, say

if TYPE_CHECKING:
    from rich.console import Console

    from training.progress import Progress

LINE_EVERY = 30  # seconds between lines about steps, where there is no terminal with a bar


@contextlib.contextmanager
def reporting() -> Iterator[Any]:
    """Give what shows a run on standard error: a bar for the epoch on a terminal, and a line for each epoch.

    Where there is no terminal, also one every half a minute within an epoch.
    """
    screen = console(stderr=True)
    reporter = TerminalReporter(screen)
    try:
        yield reporter
    finally:
        reporter.close()


class TerminalReporter:
    """Shows a run on a console; a `training.reporter.Reporter`."""

    def __init__(self, screen: Console) -> None:
        self.screen = screen
        self.bars: Any = None
        self.task: Any = None
        self.said = time.monotonic()  # when a line was written last

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()

    def note(self, text: str) -> None:
        say(self.screen, literal(text))

    def warn(self, text: str) -> None:
        say(self.screen, f"[bold yellow]Warning:[/] {literal(text)}")

    def steps(self, progress: Progress, loss: float, images_per_second: float) -> None:
        text = f"{progress.text}  loss {loss:.3f}  {images_per_second:.0f} images/s"
        self._bar(text, progress.step, progress.steps)
        self._line(text, progress.step < progress.steps)

    def _line(self, text: str, within: bool) -> None:
        """Say a line now and then, where there is no bar, within what ends with a line of its own."""
        if not self.screen.is_terminal and time.monotonic() - self.said > LINE_EVERY and within:
            self.said = time.monotonic()
            say(self.screen, literal(text))

    def calibrating(self, done: int, total: int) -> None:
        self._bar("calibrating", done, total)

    def fitting(self, share: float, step: int, loss: float) -> None:
        text = f"fitting TSMs, step {step}  loss {loss:.4f}"
        self._bar(text, round(100 * share), 100)
        self._line(f"{text}  {share:.0%}", share < 1)

    def evaluating(self, done: int, total: int) -> None:
        self._bar("validating", done, total)

    def epoch(self, row: dict[str, Any], progress: Progress) -> None:
        self.said = time.monotonic()
        parts = [progress.text]
        if "train_loss" in row:
            parts.append(f"loss {row['train_loss']:.3f}")
        parts.append(f"top-1 {row['top1']:.2f} %")
        if "images_per_second" in row:
            parts.append(f"{row['images_per_second']:.0f} images/s")
        if row.get("waiting_for_data", 0) > 0.1:
            parts.append(f"[yellow]{row['waiting_for_data']:.0%} waiting for images[/]")
        if row.get("damaged_images"):
            parts.append(f"[yellow]{row['damaged_images']} damaged images skipped[/]")
        say(self.screen, "  ".join(parts))

    def _bar(self, text: str, done: int, total: int) -> None:
        if not self.screen.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self.bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
            self.bars = Progress(*columns, console=self.screen, transient=True)
            self.task = self.bars.add_task("")
            self.bars.start()
        self.bars.update(self.task, description=literal(text), completed=done, total=total)
