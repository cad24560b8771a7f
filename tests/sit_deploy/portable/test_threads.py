"""The threads that a bundle was built for, where sit-deploy is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engines
from engines.errors import EngineError
from engines.timing import TimingOptions
from sit_deploy.portable import bundle, record
from sit_deploy.report.check_record import read_check
from tests.helpers.bundles import load_manifest, seal_again
from tests.sit_deploy.portable.conftest import Run


@pytest.fixture
def folder(nano_fp32: Path, copy_of: Callable[..., Path], folder_of: Callable[..., Path]) -> Path:
    """The folder of a bundle that was built for two threads."""
    built = copy_of(nano_fp32, "built")
    fields = load_manifest(built)
    fields["engine"]["threads"] = 2
    seal_again(built, fields)
    return folder_of(built)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The threads that an engine is opened with, asked for its layers, and timed with; of those two nothing comes."""
    seen: list[int | None] = []
    runtime = type(engines.get("onnxruntime"))
    load = runtime.load

    def loading(*args: Any, threads: int | None, **fields: Any) -> engines.Runner:
        seen.append(threads)
        return load(*args, threads=threads, **fields)

    def layers(*_: object, threads: int | None, **__: object) -> None:
        seen.append(threads)
        raise EngineError("not now")

    def worker(_: str, __: Path, ___: int, timing: TimingOptions, ____: object) -> None:
        seen.append(timing.threads)

    def alternate(*_: object) -> None:
        raise EngineError("not now")

    monkeypatch.setattr(runtime, "load", loading)
    monkeypatch.setattr(runtime, "layer_times", layers)
    monkeypatch.setattr(record, "engine_worker", worker)
    monkeypatch.setattr(record, "alternate", alternate)
    return seen


@pytest.mark.parametrize(
    ("cpus", "words", "threads", "note"),
    [
        (4, [], 2, "run on 2 threads, as it was built (build --threads)"),
        (1, [], 1, "run on 1 thread, and built for 2 (build --threads)"),
        (4, ["--threads", 1], 1, "run on 1 thread, and built for 2 (build --threads)"),
        (4, ["--threads", 2], 2, None),
    ],
)
def test_check_keeps_to_them(
    cpus: int,
    words: list[object],
    threads: int,
    note: str | None,
    run: Run,
    used: list[int | None],
    folder: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "cpu_count", lambda: cpus)
        assert run(folder, "--rounds", 1, *words)[0] == 2  # nothing was timed
    assert used == [threads] * 3
    (row,) = read_check(Path("check.json"))["bundles"]
    assert [said for said in row["notes"] if "thread" in said] == ([note] if note else [])


def test_load_keeps_to_them(used: list[int | None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "cpu_count", lambda: 4)
    for threads in (None, 1):
        bundle.load(folder / "bundles/built", threads=threads).close()
    assert used == [2, 1]
