"""What long work shows: on terminals, in pipes and in notebooks."""

from __future__ import annotations

import contextlib
import os
import sys

import click
import pytest

from sit_deploy import display
from sit_deploy.cli import COMMANDS, cli
from sit_deploy.display import Display
from sit_deploy.terminal import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which stand still until a test moves them."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_has_a_line_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Not one a step, and no control codes; also where colours are forced, as some CI does."""
    with Display() as shown:
        for second in range(100):
            clock[0] = float(second)
            shown.moving(f"step {second}", second, 100)
            shown.step("calibrating", second, 100)
        shown.step("calibrating", 100, 100)
        shown.line("epoch 1/2")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["step 31", "step 62", "step 93", "calibrating (99.0 s)", "epoch 1/2"]


def test_steps_without_end_are_shown_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as shown:
        shown.step("calibrating", 1, 9)
        clock[0] = 40.0
        shown.step("calibrating", 2, 9)
    assert capsys.readouterr().err == "calibrating: 2 of 9, 40 s\n"


def test_colours_that_are_forced_move_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as shown:
        shown.moving("step 1", 1, 2)
        shown.step("building", 2, 2)
        shown.warn("slow")
    err = capsys.readouterr().err
    assert "\x1b[2K" not in err and "\x1b[?25l" not in err and "\r" not in err
    assert "step 1" not in err and "building (" in err and "slow" in err


def test_quiet_has_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as shown:
        shown.moving("step 1", 1, 2)
        shown.step("building", 2, 2)
        shown.line("epoch 1/2")
        shown.note("a note")
        shown.warn("[x] is slow")
    assert capsys.readouterr().err == "Warning: [x] is slow\n"


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80, **environment: str) -> str:
    """Return what a terminal is sent of a run of two epochs and a step."""
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Display() as shown:
            shown.step("Loading", 1, 1)
            for step in range(1, 4):
                shown.moving(
                    f"epoch 1/2, step {step}/3, 2 min 10 s left  loss 2.318  45 images/s  [3]", step, 3
                )
                if shown._bars is not None:
                    shown._bars.refresh()
            shown.clear()
            shown.line("epoch 1/2  loss 2.318")
    seen = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(ours, 1 << 12):  # of a terminal, no more comes at once
            seen += part
    os.close(ours)
    return seen.decode()


def test_a_terminal_has_bars_and_keeps_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_terminal(monkeypatch, columns=120)
    assert "\x1b[2K" in seen and "step 3/3, 2 min 10 s left  loss 2.318  45 images/s  [3]" in seen
    last = seen.rpartition("\x1b[2K")[2]  # what is left on the screen, below the lines that stay
    assert "✓" in last and "Loading" in last and "step" not in last
    assert "epoch 1/2  loss 2.318\r\n" in seen and "\x1b[?25h" in seen


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_a_bar_is_one_line_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_terminal(monkeypatch, columns)
    assert "…" in seen and "epoch 1/2" in seen
    moving = [part for part in seen.split("\x1b[2K") if "epoch 1/2, " in part]
    assert moving and all(part.split("epoch 1/2, ")[1].count("\n") <= 1 for part in moving)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "1"}])
def test_terminals_that_show_lines_below_one_another(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is that of `!sit-deploy` in a notebook."""
    seen = on_terminal(monkeypatch, **environment)
    assert "\x1b[2K" not in seen and "\x1b[1A" not in seen
    assert "Loading (0.0 s)" in seen and "epoch 1/2  loss 2.318" in seen and "step 3/3" not in seen


@pytest.mark.parametrize("widgets", [True, False])
def test_notebooks_need_no_widgets(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "find_spec", lambda _: object() if widgets else None)
    screen = console(stderr=True)
    monkeypatch.setattr(screen, "is_jupyter", True)
    assert display.can_move(screen) is widgets


def test_every_command_that_shows_progress_can_be_quiet() -> None:
    showing = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        names = vars(sys.modules[command.callback.__module__]) if command.callback else {}
        if {"progress", "progress_of_first", "display"} & names.keys():
            showing.append(name)
            assert any("--quiet" in option.opts for option in command.params), name
    assert {"train", "slim", "quickstart", "build", "calibrate", "validate", "search", "embed"} <= set(
        showing
    )
