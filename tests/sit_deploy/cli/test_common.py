from __future__ import annotations

import os
import sys

import click
import pytest

from sit_deploy.cli import common
from sit_deploy.cli.common import (
    Cpus,
    DynamicBatch,
    console,
    emit_json,
    file_size,
    literal,
    progress,
    say,
    table,
)
from sit_deploy.cli.options import outputs_option


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 kB"),
        (312, "0.3 kB"),
        (4_500, "4.5 kB"),
        (99_999, "100.0 kB"),
        (8_140_000, "8.1 MB"),
        (39_250_000_000, "39.2 GB"),
    ],
)
def test_file_size(count: int, text: str) -> None:
    assert file_size(count) == text


def test_dynamic_batch() -> None:
    assert DynamicBatch().convert("1:8:32", None, None) == (1, 8, 32)
    assert DynamicBatch().convert((1, 8, 32), None, None) == (1, 8, 32)
    for text in ("8", "1:8", "1:8:32:64", "1:x:32", "1:-8:32", ":8:", "1:8:³", "a:b:c", ""):
        with pytest.raises(click.BadParameter, match=r"is not MIN:OPT:MAX; write for example 1:8:32"):
            DynamicBatch().convert(text, None, None)
    for text in ("0:8:32", "8:1:32", "1:32:8"):
        with pytest.raises(click.BadParameter, match=r"must have 1 <= MIN <= OPT <= MAX"):
            DynamicBatch().convert(text, None, None)


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"a": "é", "b": None})
    assert capsys.readouterr().out == '{\n  "a": "é",\n  "b": null\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        emit_json({"a": float("nan")})


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/b] :cow: \\[y] " + "long " * 60
    screen = console()
    say(screen, f"[bold]{literal(hostile)}[/]")
    assert capsys.readouterr().out == hostile + "\n"  # neither taken for markup nor cut into lines
    listing = table("a", title=literal("[/t]"), fold=("a",))
    listing.add_row(literal("[/b] :cow:"))
    screen.print(listing)
    assert {"[/t]", "[/b] :cow:"} <= {line.strip() for line in capsys.readouterr().out.splitlines()}


def test_progress_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("Loading", 0, 0)
        report("Loading", 1, 2)
        report("Loading", 2, 2)
        report("Exporting", 0, 0)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()  # a step that did not finish prints nothing
    assert line.startswith("Loading (") and line.endswith(" s)")


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress() as report:
            report("Loading [x]", 0, 0)
            report("Loading [x]", 1, 2)
            report("Loading [x]", 2, 2)
            report("Exporting", 0, 0)
    seen = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "Loading [x]" in seen and "Exporting" in seen and "✓" in seen
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_wraps_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        common.say(common.console(), "three words each wholly on one line")
    lines = [line.rstrip() for line in os.read(ours, 4096).decode().split("\r\n")]
    os.close(ours)
    assert lines == ["three words each", "wholly on one line", ""]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("5,1-2", (1, 2, 5)), ("2,2", (2,))]
)
def test_cpus(text: str, numbers: tuple[int, ...]) -> None:
    assert Cpus().convert(text, None, None) == numbers


@pytest.mark.parametrize(
    ("args", "names"),
    (
        ([], None),
        (["--outputs", "cls, features"], ("features", "cls")),
        (["--outputs", "cls", "--outputs", "features"], ("features", "cls")),
    ),
)
def test_outputs_that_are_asked_for_again_are_all_of_them(
    args: list[str], names: tuple[str, ...] | None
) -> None:
    @click.command()
    @outputs_option
    def command(outputs: tuple[str, ...] | None) -> None:
        assert outputs == names

    command.main(args, standalone_mode=False)
