"""What benchmarks are tried on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_machine.session import Session
from engines import BuildOptions, EngineInfo
from engines.tensorrt.engine import TensorRT
from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.trt_rig import make_rig
from tests.sit_deploy.conftest import nano_fp32

__all__ = ["nano_fp32"]  # fixtures
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a fake GPU in place with a recorded TensorRT, whose plans are the graphs that ONNX Runtime then computes."""

    def make(release: str) -> None:
        rig = make_rig(monkeypatch, tmp_path / "cache", release)

        def build(engine: TensorRT, source: Path, target: Path, options: BuildOptions) -> EngineInfo:
            target.write_bytes(make_plan(source.read_bytes()))
            capability = "sm{}{}".format(*rig.gpu.capability)
            return EngineInfo(engine.kind, rig.version, target.name, target.stat().st_size, 0.0, capability)

        monkeypatch.setattr(TensorRT, "build", build)

    return make


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Ten minutes, in folders of the test's own; the kit has come with nothing."""
    folders = {name: tmp_path / name for name in ("carried/kit", "home", "out")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    kit, home, out = folders.values()
    return Session(kit, ROOT, home, out, time.perf_counter() + 600)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a copy of the script in a kit, as on the machine; its results are in tmp_path/out."""
    kit = tmp_path / "kit"
    kit.mkdir()
    shutil.copy(ROOT / "benchmarks" / "on_device.py", kit)

    def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        env = {**os.environ, "HOME": str(tmp_path), "OUT": str(tmp_path / "out")}
        env.pop("PYTHONPATH", None)
        command = [sys.executable, str(kit / "on_device.py"), *words]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    return run
