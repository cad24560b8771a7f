"""What check.py leaves where its output goes nowhere, its file cannot be written, or somebody stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineBuildError, EngineError
from sit_deploy.errors import InputError
from sit_deploy.portable import build, check
from sit_deploy.report.check_record import read_check
from tests.helpers.bundles import seal_again
from tests.sit_deploy.portable.conftest import Run, another

UNWRITTEN = (
    "Error: standard output could not be written (No space left on device), and what was written to files is whole; send the output "
    "elsewhere\n"
)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


def started(folder: Path, *words: object, **sinks: Any) -> subprocess.CompletedProcess[str]:
    """Run check.py of a folder, timing nothing; what is written goes to check.json beside the folder."""
    command = [sys.executable, "check.py", "--rounds", "0", "-o", folder.parent / "check.json", *words]
    return subprocess.run(
        list(map(str, command)), cwd=folder, text=True, check=False, **{"stderr": subprocess.PIPE, **sinks}
    )


@pytest.fixture
def wrong(nano_fp32: Path, copy_of: Callable[..., Path]) -> Path:
    """A bundle whose golden outputs are others."""
    wrong = copy_of(nano_fp32, "wrong")
    with np.load(wrong / "golden.npz") as golden:
        images, logits = golden["images"], golden["logits"]
    np.savez(wrong / "golden.npz", images=images, logits=logits[:, ::-1])
    seal_again(wrong)
    return wrong


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]])
def test_output_that_is_full_costs_no_file(
    streams: list[str], nano_fp32: Path, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        ended = started(folder_of(nano_fp32), **dict.fromkeys(streams, full))
    assert ended.returncode == 2 and read_check(tmp_path / "check.json")["bundles"][0]["golden"]["passed"]
    if "stderr" not in streams:
        assert ended.stderr == UNWRITTEN


@needs_full
@pytest.mark.slow
def test_wrong_outputs_are_told_where_the_output_is_full(wrong: Path, folder_of: Callable[..., Path]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = started(folder_of(wrong), stdout=full)
    assert ended.returncode == 1 and ended.stderr.startswith(UNWRITTEN)
    assert ended.stderr.endswith("do not serve it here\n") and ended.stderr.count("\n") == 2


@needs_full
@pytest.mark.slow
def test_help_that_cannot_be_written(nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = started(folder_of(nano_fp32), "--help", stdout=full)
    assert (ended.returncode, ended.stderr) == (2, UNWRITTEN)


@pytest.mark.slow
def test_a_reader_that_has_gone_costs_no_file(
    nano_fp32: Path, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = started(folder_of(nano_fp32), stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (2, "") and read_check(tmp_path / "check.json")


@pytest.mark.slow
def test_streams_that_are_closed(nano_fp32: Path, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = folder_of(nano_fp32)
    for number, closed in enumerate(("2>&-", ">&-", ">&- 2>&-")):
        name = tmp_path / f"{number}.json"
        command = f'"$0" check.py --rounds 0 -o "$1" {closed}'
        ended = subprocess.run(["sh", "-c", command, sys.executable, str(name)], cwd=folder, check=False)
        assert ended.returncode == 0 and read_check(name), closed


def test_a_disk_that_is_full_costs_no_table(
    run: Run, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        raise EngineError(f"cannot write {path}: No space left on device")

    folder = folder_of(nano_fp32)
    monkeypatch.setattr(check, "atomic_path", full)
    status, out, err = run(folder)
    assert (status, err) == (2, "Error: cannot write check.json: No space left on device\n")
    assert "nano-fp32  fp32" in out and "check.json" not in out and not list(Path().iterdir())


def test_wrong_outputs_are_told_where_the_file_cannot_be_written(
    run: Run, wrong: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        raise EngineError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(check, "atomic_path", full)
    status, out, err = run(folder_of(wrong))
    first, second = err.splitlines()
    assert (
        status == 1
        and "MISMATCH" in out
        and first.endswith("cannot write check.json: No space left on device")
    )
    assert second.endswith("do not serve it here")


def test_what_is_stopped_says_what_is_there(
    run: Run,
    nano_fp32: Path,
    copy_of: Callable[..., Path],
    folder_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    folder = folder_of(nano_fp32)
    monkeypatch.setattr(build, "choose_kind", lambda asked: "tensorrt")
    monkeypatch.setattr(build, "build_here", lambda *_: None)
    monkeypatch.setattr(check, "measure", interrupt)
    stopped = "Error: interrupted; only built/nano-fp32 was written\n"
    assert run(folder, "--build") == (2, "", stopped)
    other = another(nano_fp32, copy_of)
    two = folder_of(nano_fp32, other, name="two")
    both = "; only built/nano-fp32, built/other were written\n"
    assert run(two, "--build") == (2, "", f"Error: interrupted{both}")
    for failure, said in (
        (EngineError("no process"), "no process"),
        (RuntimeError("odd"), "check.py failed: RuntimeError: odd"),
    ):
        monkeypatch.setattr(check, "measure", lambda *_, failure=failure: raised(failure))
        assert run(two, "--build") == (2, "", f"Error: {said}{both}")
    monkeypatch.setattr(build, "build_here", interrupt)
    assert run(folder, "--build") == (2, "", "Error: interrupted; nothing was written\n")


def raised(error: Exception) -> Any:
    """Raise an error."""
    raise error


@pytest.mark.parametrize("error", [EngineBuildError, InputError])
def test_an_engine_that_is_not_built_is_a_row(
    error: type[Exception],
    run: Run,
    nano_fp32: Path,
    copy_of: Callable[..., Path],
    folder_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An A100 has no FP8, a disk is full: that costs the other bundles nothing."""

    def build_here(bundle: Any, kind: str, device: str | None) -> None:
        assert (kind, device) == ("tensorrt", "cuda:1")
        if bundle.name == "other":
            raise error(f"sm80 has no FP8, says {bundle.path}/engine.plan")

    other = another(nano_fp32, copy_of)
    folder = folder_of(nano_fp32, other)
    monkeypatch.setattr(build, "choose_kind", lambda asked: "tensorrt")
    monkeypatch.setattr(build, "require_device", lambda device: None)
    monkeypatch.setattr(build, "build_here", build_here)
    monkeypatch.setattr("sit_deploy.portable.record.examine", lambda path, *_: check_examined(path))
    status, out, err = run(folder, "--build", "--device", "cuda:1")
    said = "sm80 has no FP8, says bundles/other/engine.plan"
    assert (status, err) == (2, f"Error: {said}\n") and f"did not run: {said}" in out
    rows = {row["name"]: row for row in read_check(Path("check.json"))["bundles"]}
    assert rows["other"]["refused"] == said and rows["nano-fp32"]["golden"]["passed"]


def check_examined(path: Path) -> Any:
    """Examine a bundle on the CPU."""
    from sit_deploy.portable.examine import examine

    return examine(path, None, "cpu")
