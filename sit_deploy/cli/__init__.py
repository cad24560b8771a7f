"""The command `sit-deploy`: one module a command, imported when that command runs, so that help is quick."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import click
from click.shell_completion import CompletionItem

from sit_deploy import __version__
from sit_deploy.cli.complete import teach
from sit_deploy.cli.failures import TRACEBACK, explain, unwritten
from sit_deploy.cli.streams import PipeBrokeError, Stream, told_apart, watched
from sit_deploy.errors import Error, nearest
from sit_deploy.interrupts import heed_signals, heeded
from sit_deploy.text import printable, shortened

# name → one line of help; the module sit_deploy.cli.NAME has the click command `command`, if _ELSEWHERE names no other
COMMANDS = {
    "models": "List every model: parameters, MACs, tokens, resolution.",
    "quickstart": "The whole way in minutes: train, distil, build, compare.",
    "train": "Train a teacher, or distil a SiT from one (FRD).",
    "slim": "Slim a trained model in minutes, without labels.",
    "search": "Find the token schedule for a latency, and build it.",
    "build": "Build a bundle: checkpoint to a checked engine.",
    "export": "Write the ONNX graph alone.",
    "calibrate": "Observe a graph's ranges on images, for int8 and fp8.",
    "validate": "Check a bundle: golden outputs, accuracy, agreement.",
    "bench": "Time a bundle's engine against PyTorch.",
    "report": "Ship it or not: measure bundles, write one page.",
    "inspect": "Lint and summarise an ONNX graph or a bundle.",
    "predict": "Classify image files with a bundle.",
    "embed": "Write features and tokens of image files to a file.",
    "visualize": "Draw which patches each slimmed token gathers.",
    "package": "Write a Triton repository, a C++ project, or a Python folder.",
    "serve": "Serve a bundle with Triton on this machine.",
    "doctor": "Say what each engine can do on this machine.",
}

_EMPTY_MEANS = {"--auto-augment", "--qat-skip"}  # no policy; no layers

_ELSEWHERE = {
    "train": "training.cli.train",
    "quickstart": "training.cli.quickstart",
    "slim": "training.cli.slim",
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return teach(import_module(_ELSEWHERE.get(name, f"sit_deploy.cli.{name}")).command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands, without importing them for their help."""
        found = [
            CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the words, which prints help and versions too."""
        with told_apart():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Here, because click itself would turn these into "Aborted" and into status 1."""
        try:
            with told_apart():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Error("interrupted; nothing was left half-written") from None
        except EOFError as error:  # of a file; click takes it for the end of what somebody types
            raise RuntimeError(f"a file ended too early ({error})") from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if (
            args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing
        ):  # nor while a shell completes the words after a wrong one
            raise click.UsageError(f"No such command '{args[0]}'{nearest(args[0], tuple(COMMANDS))}")
        if not ctx.resilient_parsing:
            _refuse_empty_words(args)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _refuse_empty_words(words: Sequence[str]) -> None:
    """Refuse an empty word, as a variable of the shell gives that is not set: as a path it would be the folder one is in.

    Options whose empty word means something (`_EMPTY_MEANS`) may have one.

    Raises:
        click.UsageError: says where it stands.
    """
    for before, word in pairwise(words):
        option, equals, value = word.partition("=")
        if equals and not value and option.startswith("--"):
            before, word = option, ""
        if not word and before not in _EMPTY_MEANS:
            place = f"what follows {before}" if before.startswith("-") else f"the argument after {before}"
            raise click.UsageError(
                f"{place} is empty, as of a variable that is not set; give a value, or leave it out"
            )


def _show_versions(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Print the version of sit-deploy, then what of the rest is installed, a line each; none of it is imported."""
    if not asked or ctx.resilient_parsing:
        return
    from sit_deploy.doctor import runtimes, versions

    click.echo(f"sit-deploy {__version__}")
    installed = versions()
    for package in ("python", "torch", "timm", "onnx", *runtimes()):
        if installed[package]:
            click.echo(f"{package} {installed[package]}")
    ctx.exit()


@click.command(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: sit-deploy build --model sit_s --precision fp16",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of sit-deploy and of what it builds with, and exit.",
)
def cli() -> None:
    """From a SiT checkpoint (self-slimmed vision transformer) to an engine that serves.

    Exit status: 0 good; 1 a check failed (parity, accuracy); 2 bad usage or bad input.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit. Every error is one line; one that nobody foresaw says that it is a defect."""
    heed_signals()
    with watched() as streams:
        status = _run(args, *streams)
    sys.exit(status)


def _run(args: list[str] | None, out: Stream | None, err: Stream | None) -> int:
    """Run a command, say what ended it, and return the exit status."""
    try:
        # with standalone_mode off, click returns a command's result, and the status of Context.exit as an integer
        with heeded():
            status = cli.main(args, prog_name="sit-deploy", standalone_mode=False)
    except click.ClickException as error:
        error.message = printable(shortened(error.message))
        return _tell(err, error.show, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail(err, "interrupted; nothing was left half-written")
    except Exception as error:
        lost = [stream for stream in (out, err) if stream is not None and stream.error is not None]
        if os.environ.get(TRACEBACK) and not lost:
            raise
        for stream in lost:
            stream.drop()
        gone = isinstance(error, PipeBrokeError)
        # the reader of our output has gone, as with `| head`: nobody is there to tell
        if gone and any(stream.error.errno == errno.EPIPE for stream in lost):
            return Error.exit_status
        if out in lost:
            return _fail(err, unwritten(out.error))
        return _fail(
            err, *explain(error.__cause__ if gone else error, sys.argv[1:] if args is None else args)
        )
    return status if isinstance(status, int) else 0


def _fail(err: Stream | None, message: str, status: int = Error.exit_status) -> int:
    """Say what went wrong, and return the exit status."""
    line = f"{click.style('Error:', fg='red', bold=True)} {printable(shortened(' '.join(message.split())))}"
    return _tell(err, lambda: click.echo(line, err=True), status)


def _tell(err: Stream | None, say: Callable[[], None], status: int) -> int:
    """Say something on standard error, if anybody is there to read it, and return the exit status."""
    try:
        say()
    except OSError:
        if err is not None:
            err.drop()
    return status
