"""What check.py writes down of bundles, whatever they are called and whatever keeps them from being timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineError, WorkerError
from engines.gpus import Gpu, GpuStatus
from engines.latency import Histogram, LatencyStats
from engines.timing import WorkerResult
from sit_deploy.portable.bundle import rebuild_command
from sit_deploy.report.check_record import find_elsewhere, read_check
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.trt_rig import make_rig
from tests.sit_deploy.portable.conftest import Run, another, on_fake_tensorrt

RELEASE = "tensorrt-rtx-1.7.1"


def timed(milliseconds: float) -> WorkerResult:
    """Three rounds of two calls each."""
    rounds = [[milliseconds / 1e3] * 2] * 3
    return WorkerResult(
        stats=LatencyStats.from_rounds(rounds),
        round_medians_ms=(milliseconds,) * 3,
        threads=1,
        cpus=(0,),
        quiet=True,
        histogram=Histogram.from_seconds([second for one in rounds for second in one]),
    )


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fake GPU, in this process."""
    make_rig(monkeypatch, tmp_path / "cache", RELEASE)
    here = GpuStatus((Gpu("Fake GPU", "sm89"),), "")
    monkeypatch.setattr("sit_deploy.portable.record.find_gpus", lambda: here)
    monkeypatch.setattr("sit_deploy.portable.record.telemetry", lambda number: None)


@pytest.mark.usefixtures("on_a_gpu")
def test_names_that_are_no_utf8(
    run: Run,
    nano_fp32: Path,
    nano_rtx: Path,
    folder_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Folders that were renamed afterwards: TensorRT opens plans by their bytes, so such names are good."""
    bundles = [on_fake_tensorrt(path, tmp_path / path.name, RELEASE) for path in (nano_fp32, nano_rtx)]
    folder = folder_of(*bundles)
    for name, raw in (("nano-fp32", b"a\xff"), ("nano-rtx", b"b\xff")):
        (folder / "bundles" / name).rename(folder / "bundles" / os.fsdecode(raw))

    def alternate(workers: Mapping[str, Any], *_: Any) -> dict[str, WorkerResult]:
        return {name: timed(1.0 + number) for number, name in enumerate(workers)}

    monkeypatch.setattr("sit_deploy.portable.record.alternate", alternate)
    status, out, err = run(folder, "--rounds", "3", "--seconds", "0.1")
    assert (status, err) == (0, "")
    assert r"b\xff over a\xff at batch 1: 0.50x as fast" in out
    rows = read_check(Path("check.json"))["bundles"]
    assert [row["name"] for row in rows] == [r"a\xff", r"b\xff"] and all(row["latencies"] for row in rows)


def test_what_was_not_timed_is_said_without_a_place(
    run: Run,
    nano_fp32: Path,
    folder_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(nano_fp32)

    def fail(*_: Any) -> Any:
        raise EngineError(f"worker x failed: {folder}/bundles/nano-fp32/engine.onnx finds no memory")

    monkeypatch.setattr("sit_deploy.portable.record.alternate", fail)
    status, out, err = run(folder, "--rounds", "3")
    said = "nothing was timed: worker x failed: bundles/nano-fp32/engine.onnx finds no memory"
    assert (status, err) == (2, f"Error: {said}\n") and said in out
    fields = read_check(Path("check.json"))
    assert fields["timing"]["note"] == said and str(tmp_path) not in Path("check.json").read_text()
    # and a page says why there are no times
    digest = load_manifest(nano_fp32)["digest"]
    (row,) = find_elsewhere([Path("check.json")], [(digest, "nano-fp32", "nano-fp32")])[digest]
    assert said in row["bundle"]["notes"]


def test_one_that_cannot_be_timed_costs_the_others_nothing(
    run: Run,
    nano_fp32: Path,
    copy_of: Callable[..., Path],
    folder_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU may hold one engine at a time, and not all that wait for their turn."""
    other = another(nano_fp32, copy_of)
    folder = folder_of(nano_fp32, other)
    asked: list[list[str]] = []

    def alternate(workers: Mapping[str, Any], *_: Any) -> dict[str, WorkerResult]:
        asked.append(list(workers))
        if "other, batch 1" in workers:
            raise WorkerError("worker other, batch 1 failed: out of memory", "other, batch 1")
        return {name: timed(1.0) for name in workers}

    monkeypatch.setattr("sit_deploy.portable.record.alternate", alternate)
    status, out, err = run(folder, "--rounds", "3")
    said = "not all was timed: worker other, batch 1 failed: out of memory"
    assert (status, err) == (2, f"Error: {said}\n") and said in out
    assert asked == [["nano-fp32, batch 1", "other, batch 1"], ["nano-fp32, batch 1"]]
    rows = {row["name"]: len(row["latencies"]) for row in read_check(Path("check.json"))["bundles"]}
    assert rows == {"nano-fp32": 1, "other": 0}
    # and a page says so of the one alone
    both = [(load_manifest(bundle)["digest"], bundle.name, bundle.name) for bundle in (nano_fp32, other)]
    found = find_elsewhere([Path("check.json")], both)
    notes = {name: found[digest][0]["bundle"]["notes"] for digest, name, _ in both}
    assert said in notes["other"] and said not in notes["nano-fp32"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("sit_s-fp16", "python check.py --build sit_s-fp16"),
        ("a b", "python check.py --build 'a b'"),
        ("it's", "python check.py --build 'it'\"'\"'s'"),
        ("$(rm)&", "python check.py --build '$(rm)&'"),
        ("-x", "python check.py --build bundles/-x"),
    ],
)
def test_commands_are_as_a_shell_takes_them(name: str, command: str) -> None:
    assert rebuild_command(name) == command


def test_a_name_that_is_an_option(
    run: Run, nano_fp32: Path, copy_of: Callable[..., Path], folder_of: Callable[..., Path]
) -> None:
    bundle = copy_of(nano_fp32, "-x")
    seal_again(bundle)
    assert run(folder_of(bundle), "bundles/-x")[0] == 0
