"""What a build says of an engine that this machine cannot run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import EngineInfo
from engines.base import Support
from engines.gpus import Gpu, GpuStatus
from sit_deploy.pipeline.engine import BuiltEngine, compare_engine


@pytest.mark.parametrize(
    ("gpus", "foreign", "needs"),
    [((), False, "a GPU"), (("sm90",), True, "another GPU"), (("sm89",), False, "pycuda")],
)
def test_why_an_engine_was_not_run(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], foreign: bool, needs: str
) -> None:
    status = GpuStatus(tuple(Gpu("G", capability) for capability in gpus), "" if gpus else "no driver")
    monkeypatch.setattr("sit_deploy.pipeline.engine.find_gpus", lambda: status)
    answer = Support("tensorrt-rtx", True, "1.7", True, False, "why", foreign_gpu=foreign)
    runtime = SimpleNamespace(kind="tensorrt-rtx", probe=lambda: answer)
    info = EngineInfo("tensorrt-rtx", "1.7", "engine.plan", 1, 0.0, "sm89")
    work = SimpleNamespace(request=None, hops=[])
    assert compare_engine(work, BuiltEngine(runtime, Path("engine.plan"), info), None) is None
    assert [(hop.name, hop.note) for hop in work.hops] == [
        ("tensorrt-rtx engine", f"built; to run, it needs {needs}")
    ]
