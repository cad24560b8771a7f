"""Run by test_pycuda.py with a stand-in for libcuda.so.1: the runner on the real PyCUDA. Prints JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
from pathlib import Path

import numpy as np

from engines import EngineLoadError
from engines.tensorrt import cuda
from engines.tensorrt.engine import TensorRT
from tests.helpers.fake_cuda import FakeGpu
from tests.helpers.fake_tensorrt import FakeTensorRT

driver = ctypes.CDLL("libcuda.so.1")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
driver.stand_in_enqueue.argtypes = [ctypes.c_void_p, CALLBACK]
callbacks = []  # kept: C has only their address


def counts() -> dict[str, int]:
    names = ("device", "host", "streams", "events", "graphs", "launches", "retained", "depth")
    out = (ctypes.c_long * len(names))()
    driver.stand_in_counts(out)
    return dict(zip(names, out, strict=True))


class Stream:
    captured, pending = None, ()

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def enqueue(self, work) -> None:
        callbacks.append(CALLBACK(lambda _: work()))
        driver.stand_in_enqueue(self.handle, callbacks[-1])


class Streams(dict):
    """Any handle that PyCUDA made."""

    def __contains__(self, handle: object) -> bool:
        return True

    def __getitem__(self, handle: int) -> Stream:
        return Stream(handle)


class Memory(FakeGpu):
    """The fake TensorRT's view of memory that PyCUDA allocated."""

    def need_context(self, what: str) -> None:
        assert counts()["depth"] > 0, what

    def memory_at(self, address: int, byte_count: int, what: str) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * byte_count).from_address(address), np.uint8)


gpu = Memory()
gpu.streams = Streams()
trt = FakeTensorRT("tensorrt-10.16.1", gpu)
sys.modules["tensorrt"] = trt.module
plan, weights = Path(sys.argv[1]), np.load(sys.argv[2])
engine = TensorRT()
random = np.random.default_rng(0)
result: dict = {"probe": engine.probe().reason, "worst": 0.0}

for _ in range(100):
    with engine.load(plan, contexts=2) as runner:
        for batch in (3, 3, 3, 8, 1):
            x = random.standard_normal((batch, 8)).astype(np.float32)
            error = np.abs(runner.infer({"x": x})["y"] - x @ weights).max()
            result["worst"] = max(result["worst"], float(error))
        result["gpu_seconds"] = runner.last_gpu_seconds
        result["notes"] = runner.notes
del runner
gc.collect()
result["after"] = counts()

runner = engine.load(plan, contexts=2, cuda_graph=False)
errors: list[str] = []


def close() -> None:
    try:
        runner.close()
    except Exception as error:
        errors.append(repr(error))


thread = threading.Thread(target=close)
thread.start()
thread.join()
result["closed_elsewhere"] = {**counts(), "errors": errors}

device = cuda.CudaDevice(0)
with device.current():
    try:
        device.allocate(1 << 40, "tensor x", "take less")
    except EngineLoadError as error:
        result["too_much"] = str(error)
print(json.dumps(result))
