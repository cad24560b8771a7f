"""Lines on a terminal, in a pipe and in a notebook: what people wrote is shown as it is, and obeyed by nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sit_deploy.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """Return what writes to standard output, or to standard error."""
    from rich.console import Console
    from rich.segment import Segment

    class Screen(Console):
        """A console that shows control characters in a text, whoever wrote it; those of styles are its own."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(printable(text), style)

    plain = {"stderr": stderr, "highlight": False, "emoji": False}
    screen = Screen(**plain)
    if not screen.is_terminal:
        # a pipe has no width of its own; 80 columns would fold the tables
        screen = Screen(**plain, width=120)
    screen.on_broken_pipe = _reader_gone  # type: ignore[method-assign]
    return screen


def _reader_gone() -> None:
    """Rich would exit with status 1, which says that a check failed; `cli.main` knows better."""
    raise BrokenPipeError


def say(screen: Console, text: str) -> None:
    """Print a line with markup: wrapped between words on a terminal, left whole in a pipe."""
    screen.print(text, soft_wrap=not screen.is_terminal)


def literal(value: Any) -> str:
    """Return a value's text such that markup shows it as it is, brackets and all."""
    from rich.markup import escape

    return escape(printable(str(value)))
