"""What a terminal obeys is shown by every command, not passed on."""

from __future__ import annotations

import json
import re

import pytest

from sit_deploy.cli.common import console, emit_json, literal, say, table
from sit_deploy.errors import Error
from tests.helpers.command_line import CommandLine

HOSTILE = "\x1b[31mred\x07 \x9b2J \u202egnp.exe \x7f \udcff"


def test_control_characters_are_shown(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise Error(f"no {HOSTILE} here\nor there")

    monkeypatch.setattr("sit_deploy.cli.models.command.callback", fail)
    message = cli("models", status=2).the_error()
    assert message == r"no \x1b[31mred\x07 \x9b2J \u202egnp.exe \x7f \xff here or there"


@pytest.mark.parametrize("terminal", [True, False])
def test_no_text_of_others_reaches_a_screen_as_it_is(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the caller thought of it or not: in lines, tables, titles and bars."""
    screen = console()
    screen._force_terminal = terminal  # type: ignore[attr-defined]
    say(screen, f"[green]✓[/] {HOSTILE} {literal(HOSTILE)}")
    listing = table("name", title=HOSTILE)
    listing.add_row(HOSTILE)
    listing.add_row(literal(HOSTILE))
    screen.print(listing)
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out) if terminal else capsys.readouterr().out
    assert r"\x9b2J" in out and r"\u202e" in out and r"\xff" in out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_json_escapes_them(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({HOSTILE: [HOSTILE, "é😀"]})
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    assert json.loads(out) == {HOSTILE: [HOSTILE, "é😀"]}


def test_usage_errors_show_them_too(cli: CommandLine) -> None:
    for words in (
        [HOSTILE[:-1]],
        ["models", f"--{HOSTILE[:-1]}"],
        ["bench", "b", f"--rounds={HOSTILE[:-1]}"],
    ):
        err = cli(*words, status=2).err
        assert "x1b[31m" in err and all(character.isprintable() or character == "\n" for character in err)


def test_a_value_without_end_does_not_flood_the_terminal(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong and what to do about it are both seen."""

    def fail(**_: object) -> None:
        raise Error(f"precision is {'x' * 100_000}; build the bundle again")

    monkeypatch.setattr("sit_deploy.cli.models.command.callback", fail)
    message = cli("models", status=2).the_error()
    assert message.startswith("precision is xxx") and message.endswith("xxx; build the bundle again")
    assert len(message) < 2100 and "more characters" in message
    assert len(cli("bench", "b", f"--rounds={'x' * 100_000}", status=2).err) < 3000
