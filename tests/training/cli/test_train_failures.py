"""What goes wrong while `sit-deploy train` is at work: damaged images, full disks, signals, numbers that are none."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import CommandLine, Result, snapshot
from tests.helpers.train import start, start_server
from tests.helpers.train_command import damaged_copy, line

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")


def in_a_process(
    cli: CommandLine, *words_: object, file_limit: int | None = None
) -> tuple[Result, list[str]]:
    """Run a command in a process of its own; return what came of it, and what it left behind of files and folders."""
    start_server()  # whose own files are none of the command's
    before = snapshot(cli.folder)
    place = {"TMPDIR": str(cli.folder / "tmp")}
    result = start(cli.folder / "tmp", *words_, environment=place, file_limit=file_limit).wait()
    after = snapshot(cli.folder)
    assert after.keys() >= before.keys()
    return result, sorted(after.keys() - before.keys() - {"tmp/out", "tmp/err"})


def refused_late(result: Result) -> str:
    """Return the message of a run that started and failed: the last line, after those of its progress."""
    *before, last = result.err.splitlines()
    assert (result.status, result.out) == (2, "")
    assert "Traceback" not in result.err and last.startswith("Error: ")
    assert all(
        re.match(
            r"[Tt]raining |Preprocessing: |Makes |Expected: |Some images |Going on |epoch |\d+ images to train on, |Warning: \d+ steps in all",
            text,
        )
        for text in before
    ), before
    return last.removeprefix("Error: ")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("train", "val"), [(4, 0), (0, 4)], ids=["train", "val"])
def test_too_many_damaged_images(
    train: int, val: int, workers: int, pictures: Path, cli: CommandLine
) -> None:
    data = damaged_copy(pictures, cli.folder / "data", train, val)
    result, left = in_a_process(cli, *line(data, "--max-damaged", 3, "--workers", workers, "--log-every", 1))
    expected = r"4 images cannot be read, more than --max-damaged 3; the last: .*\.png: .*; mend or"
    assert re.match(expected, refused_late(result))
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_no_held_out_image_can_be_read(workers: int, pictures: Path, cli: CommandLine) -> None:
    data = damaged_copy(pictures, cli.folder / "data", 0, 24)
    result, left = in_a_process(cli, *line(data, "--workers", workers))
    assert refused_late(result) == "no held-out image could be read; check the validation images"
    assert left == []


def test_an_absurd_learning_rate(pictures: Path, cli: CommandLine) -> None:
    result = cli(
        *line(pictures, "--lr", 1000, "--clip-grad", 0, "--epochs", 4, "--weight-decay", 1e6), status=2
    )
    message = refused_late(result)
    assert re.match(
        r"(the loss|a weight) is not finite at step \d of epoch \d; "
        r"(the last good state is new/run/last\.pt|there is no earlier state); start again with a smaller --lr, or ",
        message,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "reason"),
    [(400_000, "cannot write new/run/model.safetensors"), (1_500_000, "cannot write new/run/last.pt")],
    ids=["the weights", "the state"],
)
def test_disk_full(limit: int, reason: str, pictures: Path, cli: CommandLine) -> None:
    """As a limit on the size of files has it: 0.8 MB of weights, 3 MB of state."""
    result, left = in_a_process(cli, *line(pictures, "--epochs", 1), file_limit=limit)
    assert refused_late(result).startswith(reason) and "free some space" in result.err
    assert left == []


def rest_after_saving() -> None:
    """Let a run do nothing more once it has saved a state."""
    from training import run

    save = run.save_state

    def saved(*arguments: Any) -> None:
        save(*arguments)
        time.sleep(60)

    run.save_state = saved


@pytest.mark.slow
def test_disk_full_later(pictures: Path, cli: CommandLine) -> None:
    """The state before stays whole, and the run goes on from it when there is room again."""
    cli(*line(pictures, "--epochs", 2, "-o", "whole"))
    output = cli.folder / "run"
    words_ = (*line(pictures, "--epochs", 2, "-o", output, "--save-every", 2), "--resume")
    child = start(cli.folder / "tmp", *words_, prepare=rest_after_saving)
    child.wait_for("epoch 0/")
    while not (output / "last.pt").exists():
        assert child.process.is_alive()
        time.sleep(0.01)
    child.kill()
    state = (output / "last.pt").read_bytes()
    result = start(cli.folder / "tmp", *words_, file_limit=1_500_000).wait()
    assert refused_late(result).startswith(f"cannot write {output / 'last.pt'} (")
    assert "go on with --resume" in result.err
    assert (output / "last.pt").read_bytes() == state
    cli(*words_)
    assert (output / "model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_interrupted_before_the_first_step(
    pictures: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the models are made there is nothing to save yet."""
    import signal

    monkeypatch.setattr("training.set_up.make_optimiser", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert cli.refuses(*line(pictures)) == "interrupted; nothing was left half-written"
