"""What benchmarks are tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines import BuildOptions, EngineInfo
from engines.tensorrt.engine import TensorRT
from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.trt_rig import make_rig
from tests.sit_deploy.conftest import nano_fp32

__all__ = ["nano_fp32"]  # fixtures


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
