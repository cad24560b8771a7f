"""One run at a time in a folder; what a killed one left is swept; and nothing that no run of ours wrote is touched."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.processes import World
from tests.helpers.train import PLAIN, RICH, start, start_world, words
from training import TrainRequest, train
from training.reporter import Silent
from training.run_files import LOCK, locked_folder, locked_run_folder

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")

ALONE = World(0, 1, torch.device("cpu"))


def request(pictures: Path, output: Path, **options: Any) -> TrainRequest:
    overrides = tuple({**PLAIN, "epochs": 1}.items())
    return TrainRequest(
        "lvvit_nano", str(pictures), output, image_size=32, overrides=overrides, workers=0, **options
    )


class Second(Silent):
    """A reporter that starts another run in the middle of the first, and keeps what that says."""

    def __init__(self, other: TrainRequest) -> None:
        self.other, self.message, self.warned = other, "", []

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def evaluating(self, *_: Any) -> None:
        if not self.message:
            with pytest.raises(InputError) as error:
                train(self.other)
            self.message = str(error.value)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_a_folder_is_refused(resume: bool, pictures: Path, tmp_path: Path) -> None:
    """Its first state is not there yet, so that nothing but the lock can tell."""
    reporter = Second(request(pictures, tmp_path / "run", resume=resume))
    train(request(pictures, tmp_path / "run"), reporter)
    assert reporter.message.startswith(
        f"{tmp_path / 'run'} is in use by another run (process {os.getpid()} on "
    )
    assert reporter.message.endswith("; wait for its end, or choose another -o")
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / LOCK).exists()


def line(pictures: Path, output: Path, **changes: Any) -> list[object]:
    recipe = words({**RICH, "epochs": 500, **changes})
    return [
        "train",
        "--model",
        "lvvit_nano",
        "--data",
        pictures,
        "--image-size",
        32,
        "-o",
        output,
        *recipe,
        "--resume",
    ]


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_gone_though_its_workers_are_not(pictures: Path, tmp_path: Path) -> None:
    """They outlive it by seconds."""
    output = tmp_path / "run"
    child = start(tmp_path / "streams", *line(pictures, output), "--workers", 2)
    child.wait_for("epoch 1/")
    refused = start(tmp_path / "second", *line(pictures, output), "--workers", 0).wait()
    assert (
        refused.status == 2
        and f"{output} is in use by another run (process {child.process.pid} on " in refused.err
    )
    assert refused.err.count("\n") == 1
    child.kill()
    (output / ".last.pt.partial").write_bytes(b"the beginning of a state")
    (output / ".model.json.1234.tmp").write_text("{")
    (output / ".notes.partial").write_text("somebody's own")
    with locked_folder(output):
        assert sorted(p.name for p in output.glob(".*")) == [LOCK, ".notes.partial"]
    assert not (output / LOCK).exists() and (output / "last.pt").exists()


@pytest.mark.slow
def test_processes_of_one_training_share_it_and_are_refused_together(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    changes = {"epochs": 1, "batch_size": 4, "cooldown_epochs": 0, "warmup_epochs": 0}
    with locked_folder(output):
        children = start_world(tmp_path / "refused", 2, *line(pictures, output, **changes), "--workers", 0)
        results = [child.wait() for child in children]
        assert [r.status for r in results] == [2, 2]
        assert all("is in use by another run" in r.err and "Traceback" not in r.err for r in results)
    children = start_world(tmp_path / "streams", 2, *line(pictures, output, **changes), "--workers", 0)
    results = [child.wait() for child in children]
    assert [r.status for r in results] == [0, 0], results


def test_a_file_system_without_locks_is_said(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked_run_folder(tmp_path / "run", ALONE) as (_, said):
        assert said is not None and "is on a file system without locks" in said and "second run" in said
        assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_that_its_holder_has_just_removed_is_made_anew(tmp_path: Path) -> None:
    """Between opening the file and locking it, the one before may have ended and removed it."""
    held, ends = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            for _ in range(200):
                try:
                    with locked_folder(tmp_path):
                        held.set()
                except InputError:
                    continue
        except BaseException as error:
            errors.append(error)
        finally:
            ends.set()

    thread = threading.Thread(target=other)
    thread.start()
    inside = 0
    while not ends.is_set():
        try:
            with locked_folder(tmp_path):
                inside += 1
                assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()}")
        except InputError:
            pass
    thread.join()
    assert not errors and not (tmp_path / LOCK).exists()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write to "), locked_folder(path):
            pass


def test_nothing_is_left_of_a_run_that_never_began(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        train(request(tmp_path / "nowhere", tmp_path / "new" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_two_quickstarts_in_a_folder(tmp_path: Path) -> None:
    from training.quickstart import quickstart

    with locked_folder(tmp_path / "q"), pytest.raises(InputError, match="is in use by another run"):
        quickstart(tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_a_child_of_the_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with locked_folder(tmp_path):
        child = os.fork()
        if not child:  # waits for the end of the test
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        with locked_folder(tmp_path):
            pass
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        os.close(reading)
