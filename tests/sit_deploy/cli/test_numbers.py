"""Every option of every command that takes a number, given numbers that nobody means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest

from sit_deploy.cli import cli as group
from sit_deploy.cli.common import Channels, Counts, Cpus, DynamicBatch
from tests.helpers.command_line import CommandLine

ABSURD = (
    str(10**21),
    str(2**63),
    "1e21",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "²",
    "9" * 5000,
    "",
    "0x10",
    "1:2:3",
    "0-99999999999",
)
NUMBERS = (click.types.IntParamType, click.types.FloatParamType, Channels, Counts, Cpus, DynamicBatch)


def commands(
    command: click.Command = group, name: tuple[str, ...] = ()
) -> Iterator[tuple[Any, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            yield from commands(command.get_command(context, word), (*name, word))
    else:
        yield name, command


def numeric() -> Iterator[Any]:
    for name, command in commands():
        for option in command.params:
            if isinstance(option.type, NUMBERS):
                yield pytest.param(command, option, id=f"{'-'.join(name)}{option.opts[0]}")


def parse(command: click.Command, option: click.Parameter, value: str) -> Any:
    """Return what the command would get; with whatever else it must be given."""
    words = [f"{option.opts[0]}={value}"]
    for other in command.params:
        if other.required and other is not option:
            words += ["x"] if isinstance(other, click.Argument) else [other.opts[0], "x"]
    parent = group.make_context("sit-deploy", [], resilient_parsing=True)
    return command.make_context("command", words, parent=parent).params[option.name]


@pytest.mark.parametrize(("command", "option"), list(numeric()))
def test_absurd_numbers_are_refused_as_the_command_line_is_read(command: click.Command, option: Any) -> None:
    """Not even Python's own limits (4300 digits, a float's infinity) are reached by anything."""
    for value in ABSURD:
        try:
            found = parse(command, option, value)
        except click.UsageError as error:
            assert len(error.format_message().splitlines()) == 1
        else:
            assert (value, found) == ("1:2:3", (1, 2, 3)) and isinstance(option.type, DynamicBatch)


# what reads the command line leaves a number that is too small to whoever knows what it is for
_NANO = ("--model", "sit_nano")
SMALL = {
    ("build", *_NANO, "--engine", "onnxruntime"): (
        "image-size", "num-classes", "batch-size", "calib-images", "keeping-ratio", "optimization-level", "threads",
        "max-accuracy-drop", "workspace", "opset",
    ),
    ("build", *_NANO, "--engine", "onnxruntime", "--precision", "int8"): ("calib-percentile",),
    ("export", *_NANO, "-o", "x.onnx"): ("image-size", "num-classes", "batch-size", "calib-images", "keeping-ratio"),
    ("calibrate", *_NANO, "--calib-data", ".", "-o", "x.json"): ("image-size", "num-classes", "calib-images", "calib-percentile"),
    ("train", *_NANO, "--data", "digits"): (
        "num-classes", "image-size", "seed", "accumulate", "workers", "max-damaged", "save-every", "log-every", "qat-images",
        "epochs", "cooldown-epochs", "batch-size", "lr", "repeats", "flip", "mixup", "min-scale", "temperature",
    ),
    ("slim", *_NANO, "--checkpoint", "x.pth", "--images", "."): (
        "image-size", "seconds", "steps", "batch-size", "lr", "seed", "max-damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "option"), [(w, o) for w, options in SMALL.items() for o in options])
def test_numbers_below_nothing(
    words: tuple[str, ...], option: str, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        pytest.fail("work was begun")

    for place in (
        "sit_deploy.pipeline.build.make_lowered_graph",
        "sit_deploy.pipeline.calibration.make_float_graph",
        "training.set_up.make_loaders",
    ):
        monkeypatch.setattr(place, begun)
    result = cli(*words, f"--{option}=-1", status=2)
    assert "Traceback" not in result.err and result.err.splitlines()[-1].startswith("Error: ")


def test_the_gpu_with_number_0() -> None:
    assert Counts("GPU numbers", "0,1", 9, 0).convert("0,1", None, None) == (0, 1)
    for value in ("-1", "10", "0,,1", "1.5", "²"):
        with pytest.raises(
            click.UsageError,
            match=r"(is not a list of|must be at most 1000) GPU numbers.*; write for example 0,1",
        ):
            Counts("GPU numbers", "0,1", 9, 0).convert(value, None, None)
