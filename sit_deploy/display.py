"""What long work shows while it goes on: bars on a terminal, and plain lines now and then where there is none."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sit_deploy.terminal import console, literal, say

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY = 30  # seconds between lines about one piece of work, where there is no bar
_WIDE = 100  # columns of a terminal that has room for a long bar


class Display:
    """Shows on standard error what goes on; a context, so that a bar ends with the work.

    Three things are shown: lines that stay (`line`, `note`, `warn`), steps (`step`), which stay when they are done, with the time that they
    took, and one piece of work that changes in place (`moving`) until it is cleared. On a terminal, and in a notebook that has ipywidgets,
    the latter two are bars. Elsewhere there is a line for each step that is done, and one every `LINE_EVERY` seconds of what is not.
    """

    def __init__(self, quiet: bool = False, screen: Console | None = None) -> None:
        """Make a display; nothing is shown yet.

        Args:
            quiet: show warnings alone.
            screen: where; standard error by default.
        """
        self.screen = console(stderr=True) if screen is None else screen
        self.quiet = quiet
        self._moves = can_move(self.screen)
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}  # steps by their text
        self._moving: Any = None
        self._started: dict[str, float] = {}
        self._said = time.monotonic()  # when something was said last

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bars; those of steps stay as they are."""
        self.clear()
        if self._bars is not None:
            self._bars.live.transient = not self._tasks  # of nothing, not even an empty line is left
            self._bars.stop()
            self._bars = None

    def line(self, markup: str) -> None:
        """Say a line that stays."""
        self._said = time.monotonic()
        if not self.quiet:
            say(self.screen, markup)

    def note(self, text: str) -> None:
        """Say a sentence."""
        self.line(literal(text))

    def warn(self, text: str) -> None:
        """Say what should be looked at, however quiet."""
        self._said = time.monotonic()
        say(self.screen, f"[bold yellow]Warning:[/] {literal(text)}")

    def step(self, text: str, done: int, total: int) -> None:
        """Show how much of a step is done; an `engines.base.Progress`.

        Args:
            text: its name.
            done: how much of it.
            total: of how much; 0 where that is not known.
        """
        if self.quiet:
            return
        since = self._started.setdefault(text, time.monotonic())
        if self._moves:
            if text not in self._tasks:
                self._tasks[text] = self._begun().add_task(literal(text), total=None)
            self._begun().update(self._tasks[text], completed=done, total=total or None)
        elif total and done >= total:
            del self._started[text]
            self.note(f"{text} ({time.monotonic() - since:.1f} s)")
        else:
            self._now_and_then(f"{text}: {done} of {total}" if total else text, time.monotonic() - since)

    def moving(self, text: str, done: int, total: int) -> None:
        """Show what changes in place; `clear` takes it away.

        Args:
            text: of now.
            done: how much.
            total: of how much.
        """
        if self.quiet:
            return
        if not self._moves:
            self._now_and_then(text)
            return
        if self._moving is None:
            self._moving = self._begun().add_task("", total=None)
        self._begun().update(self._moving, description=literal(text), completed=done, total=total or None)

    def clear(self) -> None:
        """Take away what moved."""
        if self._moving is not None:
            self._bars.remove_task(self._moving)
            self._bars.refresh()  # else the next line that stays would be printed above it once more
            self._moving = None

    def _now_and_then(self, text: str, seconds: float | None = None) -> None:
        if time.monotonic() - self._said > LINE_EVERY:
            self.note(text if seconds is None else f"{text}, {seconds:.0f} s")

    def _begun(self) -> Any:
        if self._bars is None:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.table import Column

            text = Column(no_wrap=True, overflow="ellipsis")
            columns = (
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}", table_column=text),
                BarColumn(bar_width=24 if self.screen.width >= _WIDE else 8),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=self.screen)
            self._bars.start()
        return self._bars


def can_move(screen: Console) -> bool:
    """Whether something can change in place there.

    Colours alone do not say so (FORCE_COLOR asks for them in pipes), nor does a terminal: notebooks give one to `!sit-deploy`, and show
    what it writes below one another.
    """
    if screen.is_jupyter:
        return find_spec("ipywidgets") is not None
    is_terminal = screen.is_terminal and not screen.is_dumb_terminal and screen.file.isatty()
    return is_terminal and "JPY_PARENT_PID" not in os.environ
