"""What the commands share: option types, progress, and output that is either a table or JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.base import Progress
from sit_deploy import limits
from sit_deploy.display import Display
from sit_deploy.outputs import in_order
from sit_deploy.terminal import console as console
from sit_deploy.terminal import literal as literal
from sit_deploy.terminal import say as say
from sit_deploy.text import file_size as file_size
from sit_deploy.text import is_warning, json_printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sit_deploy.advice import NextCommand

_MOST_OF_A_LIST = 1000  # numbers in one option
_QUIET = "sit_deploy.quiet"  # of a command's context

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."
)
device_option = click.option(
    "--device", metavar="cpu|cuda[:N]", help="Where the engine runs; by default what it is for."
)
# existence is checked where the path is used, so that every way in gives the same message
path_type = click.Path(path_type=Path)


def examples(*lines: str) -> str:
    """Return an epilog of example command lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def warn(text: str | None) -> None:
    """Say on standard error what a user must not miss, if there is something."""
    if text:
        say(console(stderr=True), f"[bold yellow]Warning:[/] {literal(text)}")


def say_note(screen: Console, note: str) -> None:
    """Say a note of the work, as a warning where it is one (`sit_deploy.text.is_warning`)."""
    kind = "[bold yellow]Warning:[/]" if is_warning(note) else "Note:"
    say(screen, f"{kind} {literal(note)}")


def say_next(screen: Console, commands: Iterable[NextCommand]) -> None:
    """Print commands, each on a line of its own that nothing breaks, so that it can be pasted."""
    for word, command in zip(itertools.chain(("Next",), itertools.repeat("And")), commands, strict=False):
        say(screen, f"{word}, {literal(command.what)}:")
        screen.print(f"  {literal(command.line)}", soft_wrap=True)


def table(
    *columns: str, title: str | None = None, right: tuple[str, ...] = (), fold: tuple[str, ...] = ()
) -> Table:
    """Make a table; columns named in `fold` give way where the terminal is narrow, the others never break."""
    from rich import box
    from rich.table import Table

    listing = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        justify = "right" if column in right else "left"
        listing.add_column(column, justify=justify, no_wrap=column not in fold, overflow="fold")
    return listing


def show_search(screen: Console, view: Mapping[str, Any], aside: str = "") -> None:
    """Print what a search found, as `sit_deploy.report.search_view.search_view` has it.

    Args:
        screen: to print on.
        view: of the search.
        aside: after what was found: the files that were written.
    """
    say(screen, literal(view["asked"]))
    for note in view["notes"]:
        say(screen, f"Note: {literal(note)}")
    listing = table(*view["head"], right=tuple(view["head"][2:-1]), fold=("schedule",))
    for cells in view["rows"]:
        listing.add_row(*map(literal, cells))
    screen.print(listing)
    headline = view["headline"]
    mark = "[green]✓[/]" if view["kept"] else "[red]✗[/]"
    say(screen, f"{mark} {literal(headline[:1].upper() + headline[1:])}")
    if aside:
        say(screen, aside)
    for text in (*view["lost"], *view["now"], *view["unknown"]):
        say(screen, f" {literal(text)}")
    for what, line in view["commands"]:
        say(screen, f"{literal(what)}: {literal(line)}")


def emit_json(value: Any) -> None:
    """Print JSON; a NaN or infinity in it would be a defect and raises."""
    click.echo(json_printable(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)))


def _hush(ctx: click.Context, _option: click.Parameter, quiet: bool) -> None:
    ctx.meta[_QUIET] = quiet


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_hush,
    help="Show nothing on the way but warnings.",
)


def display() -> Display:
    """Return what shows long work on standard error (a context); with --quiet, warnings alone."""
    context = click.get_current_context(silent=True)
    return Display(quiet=context is not None and context.meta.get(_QUIET, False))


def progress_of_first() -> contextlib.AbstractContextManager[Progress | None]:
    """Give `progress` in the first process of torchrun's, and none in the others, which say nothing."""
    return progress() if int(os.environ.get("RANK", 0)) == 0 else contextlib.nullcontext(None)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Give a callback (text, done, total) that shows every text as a step on standard error (`sit_deploy.display.Display.step`)."""
    with display() as shown:
        yield shown.step


class Whole(click.ParamType):
    """A whole number up to `most` (`sit_deploy.limits`); without `least`, what is too small is told by who uses it.

    No IntRange itself, so that help does not end every option with a limit that nobody meets: who does is told it.
    """

    name = "integer"

    def __init__(self, most: int, least: int | None = None) -> None:
        self.range = click.IntRange(least, most)
        self.range.name = self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.range.convert(value, param, ctx)


class Real(click.ParamType):
    """A finite number; its limits are not in help either."""

    name = "float"

    def __init__(self, least: float | None = None, most: float = limits.REAL, above: bool = False) -> None:
        self.range = click.FloatRange(least, most, min_open=above)
        self.range.name = self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number to count with; write for example 0.5", param, ctx)
        return self.range.convert(value, param, ctx)


def _numbers(texts: Iterable[str]) -> list[int] | None:
    """Return the whole numbers that texts are, None where one is none. A very long one is some number above every limit."""
    texts = list(texts)
    if not all(text.isascii() and text.isdigit() for text in texts):
        return None
    return [int(text) if len(text) <= 18 else 10**18 for text in texts]


class DynamicBatch(click.ParamType):
    """MIN:OPT:MAX → three integers."""

    name = "MIN:OPT:MAX"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        parts = _numbers(str(value).split(":"))
        if parts is None or len(parts) != 3:
            self.fail(f"{value!r} is not MIN:OPT:MAX; write for example 1:8:32", param, ctx)
        low, best, high = parts
        if not 1 <= low <= best <= high:
            self.fail(f"{value!r} must have 1 <= MIN <= OPT <= MAX; write for example 1:8:32", param, ctx)
        if high > limits.BATCH:
            self.fail(f"{value!r} must have MAX <= {limits.BATCH}; write for example 1:8:32", param, ctx)
        return low, best, high


class Counts(click.ParamType):
    """A,B,... → numbers of something, each from `least` to `most`."""

    name = "A,B,..."

    def __init__(self, what: str, example: str, most: int, least: int = 1) -> None:
        self.what, self.example, self.most, self.least = what, example, most, least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = _numbers(str(value).split(","))
        if parts is None or min(parts) < self.least:
            self.fail(f"{value!r} is not a list of {self.what}; write for example {self.example}", param, ctx)
        if max(parts) > self.most or len(parts) > _MOST_OF_A_LIST:
            self.fail(
                f"{value!r} must be at most {_MOST_OF_A_LIST} {self.what} of at most {self.most}; write for example "
                f"{self.example}",
                param,
                ctx,
            )
        return tuple(parts)


class Channels(click.ParamType):
    """R,G,B, or one number for all three → three numbers."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = [float(part) for part in str(value).replace(",", " ").split()]
        except ValueError:
            numbers = []
        # NaN is not below anything
        if len(numbers) not in (1, 3) or not all(abs(number) <= limits.REAL for number in numbers):
            self.fail(
                f"{value!r} is not R,G,B; write for example 0.485,0.456,0.406, or 0.5 for all", param, ctx
            )
        return tuple(numbers * (3 if len(numbers) == 1 else 1))


class Cpus(click.ParamType):
    """A,B-C,... → numbers of CPUs, in order."""

    name = "A,B-C,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        cpus: set[int] = set()
        for part in str(value).split(","):
            ends = _numbers(part.split("-"))
            if ends is None or len(ends) > 2 or not ends[0] <= ends[-1] <= limits.CPUS:
                self.fail(f"{value!r} is not a list of CPUs; write for example 0-3 or 0,2", param, ctx)
            cpus.update(range(ends[0], ends[-1] + 1))
        return tuple(sorted(cpus))


class OutputNames(click.ParamType):
    """A,B,... → names of outputs, in the order of a graph's."""

    name = "A,B,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return in_order(value if isinstance(value, tuple) else str(value).split(","))


class Groups(click.ParamType):
    """A,B,... → names of groups of layers; which there are, `calibration.plan` knows."""

    name = "A,B,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        parts = tuple(part.strip() for part in str(value).split(","))
        if not all(parts):
            self.fail(f"{value!r} is not a list of groups; write for example qkv,fc1,fc2", param, ctx)
        return parts
