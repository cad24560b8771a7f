"""Run by test_pycuda.py with a stand-in for libcuda.so.1: the runner on the real PyCUDA. Prints JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
import threading
import types
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


class TorchStream:
    """As much of a `torch.cuda.Stream` as is asked for."""

    def __init__(self, handle: int, device: int = 0) -> None:
        self.cuda_stream = handle

    def wait_stream(self, other: TorchStream) -> None:
        driver.cuStreamSynchronize(ctypes.c_void_p(other.cuda_stream))


class Place:
    """As much of a `torch.device`."""

    type, index = "cuda", 0


class Tensor:
    """As much of a `torch.Tensor` as is asked for, in memory of PyCUDA's."""

    device, dtype = Place(), "torch.float32"

    def __init__(self, shape: tuple[int, ...], **_: object) -> None:
        self.shape = shape
        self.memory = sys.modules["pycuda.driver"].mem_alloc(4 * math.prod(shape))
        self.array = gpu.memory_at(int(self.memory), 4 * math.prod(shape), "").view(np.float32).reshape(shape)

    def data_ptr(self) -> int:
        return int(self.memory)

    def is_contiguous(self) -> bool:
        return True

    def record_stream(self, stream: TorchStream) -> None:
        pass


def on_device() -> dict:
    """Calls on tensors of two streams in turn, plainly and by graphs, that stay and that move."""
    streams = [sys.modules["pycuda.driver"].Stream(1) for _ in range(2)]
    inputs, out, errors = [Tensor((3, 8)) for _ in range(2)], {"y": Tensor((3, 8))}, []
    sys.modules["torch"] = types.SimpleNamespace(
        device=lambda *_: None,
        float32="float32",
        empty=Tensor,
        cuda=types.SimpleNamespace(ExternalStream=TorchStream),
    )
    with engine.load(plan) as runner:
        for turn in range(12):
            stream, x = streams[turn % 2], inputs[turn % 2 if turn > 5 else 0]
            sys.modules["torch"].cuda.current_stream = lambda _, found=stream: TorchStream(found.handle)
            x.array[:] = random.standard_normal((3, 8))
            made = runner.infer_device({"x": x}, out if turn < 3 else None)["y"]
            stream.synchronize()
            errors.append(float(np.abs(made.array - x.array @ weights).max()))
        return {"worst": max(errors), "captured": runner.captured, "notes": runner.notes}


with cuda.CudaDevice(0).current():
    result["on_device"] = on_device()
    del sys.modules["torch"]  # its current stream
    gc.collect()
    result["after_on_device"] = counts()


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
