"""An empty word on the command line, as a variable of the shell gives that is not set."""

from __future__ import annotations

import pytest

from tests.helpers.command_line import CommandLine

NANO = ("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "new/out")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ((*NANO, "--checkpoint", ""), "what follows --checkpoint"),
        ((*NANO, "--calib-data="), "what follows --calib-data"),
        (("build", "--model", "sit_nano", "-o", ""), "what follows -o"),
        (("validate", "bundle", "--data", ""), "what follows --data"),
        (("predict", "bundle", ""), "the argument after bundle"),
        (("report", "", "bundle"), "the argument after report"),
        (("package", "triton", "bundle", "-o", ""), "what follows -o"),
        (("train", "--model", "sit_nano", "--data", "digits", "--teacher", ""), "what follows --teacher"),
        (("predict", "bundle", "--", ""), "what follows --"),
    ],
)
def test_an_empty_word_is_never_the_folder_one_is_in(
    words: tuple[str, ...], place: str, cli: CommandLine
) -> None:
    """`--checkpoint "$CHECKPOINT"` where nothing is set: a checkpoint that lies here would be taken without a word."""
    wanted = f"{place} is empty, as of a variable that is not set; give a value, or leave it out"
    assert cli.refuses(*words) == wanted


@pytest.mark.parametrize("words", [("--auto-augment", ""), ("--auto-augment=",), ("--qat", "--qat-skip", "")])
def test_an_empty_word_may_mean_none(words: tuple[str, ...], cli: CommandLine) -> None:
    line = cli.refuses("train", "--model", "lvvit_nano", *words, "--data", "nowhere")
    assert "is empty" not in line and ("--init" if "--qat" in words else "nowhere") in line
