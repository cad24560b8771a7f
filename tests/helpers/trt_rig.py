"""A machine with a GPU and a TensorRT that are not there, for everything that runs engines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from engines.gpus import Gpu, GpuStatus
from engines.registry import get
from engines.tensorrt.engine import TensorRT
from tests.helpers.fake_cuda import FakeGpu
from tests.helpers.fake_tensorrt import FakeTensorRT

with suppress(ImportError):  # engines are run, and tested, where there is no PyTorch
    import torch  # noqa: F401  before a fake is in place of cuda.bindings, which PyTorch imports for itself

# recorded releases (tests/engines/api); every runtime test passes on each
RELEASES = ("tensorrt-8.6.0", "tensorrt-10.0.1", "tensorrt-10.16.1", "tensorrt-11.4.0", "tensorrt-rtx-1.7.1")


@dataclass
class Rig:
    """The engine under test, on the fakes that it sees."""

    engine: TensorRT
    gpu: FakeGpu
    trt: FakeTensorRT

    @contextmanager
    def engine_context(self) -> Iterator[None]:
        """A device context that is current for a block, for what a test does itself."""
        context = self.gpu.driver.Device(0).retain_primary_context()
        context.push()
        yield
        self.gpu.driver.Context.pop()

    @property
    def version(self) -> str:
        return self.trt.module.__version__


def make_rig(monkeypatch: pytest.MonkeyPatch, cache: Path, release: str) -> Rig:
    """Put the fakes where the packages would be, until the test ends."""
    gpu = FakeGpu()
    trt = FakeTensorRT(release, gpu)
    kind = "tensorrt-rtx" if "rtx" in release else "tensorrt"
    monkeypatch.setitem(sys.modules, kind.replace("-", "_"), trt.module)
    monkeypatch.setitem(sys.modules, "pycuda.driver", gpu.driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.graphs)
    monkeypatch.setattr("engines.tensorrt.cuda._contexts", {})
    monkeypatch.setenv("SIT_DEPLOY_CACHE", str(cache))
    status = GpuStatus((Gpu(gpu.name, "sm{}{}".format(*gpu.capability)),), "")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: status)
    return Rig(get(kind), gpu, trt)


def images(batch: int = 2, seed: int = 0) -> np.ndarray:
    """Input of the MLP of tests/engines/conftest.py: float32 (batch, 8)."""
    return np.random.default_rng(seed).standard_normal((batch, 8)).astype(np.float32)


def reference(tmp_path: Path, name: str = "mlp") -> Callable[[np.ndarray], np.ndarray]:
    """What ONNX Runtime says, as a function of `x`."""
    session = ort.InferenceSession(tmp_path / f"{name}.onnx")
    return lambda x: session.run(None, {"x": x})[0]


def expected(tmp_path: Path, x: np.ndarray, name: str = "mlp") -> np.ndarray:
    """What ONNX Runtime says to `x`."""
    return reference(tmp_path, name)(x)
