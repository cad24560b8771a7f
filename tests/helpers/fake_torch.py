"""PyTorch's tensors and streams on the fake GPU: as much of them as a runner asks for, over its memory and in its streams' order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.fake_streams import Mark, Stream
from tests.helpers.trt_rig import Rig


class FakeStream:
    """A `torch.cuda.Stream`."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.cuda_stream = stream, stream.handle

    def wait_stream(self, other: FakeStream) -> None:
        Mark(other.stream).hold(self.stream)


class FakeTensor:
    """A `torch.Tensor` on the GPU.

    Attributes:
        used_on: handles of the streams that `record_stream` was told of.
    """

    def __init__(
        self, rig: Rig, array: np.ndarray, device: str = "cuda:0", contiguous: bool = True, offset: int = 0
    ) -> None:
        self.device, self.shape, self.dtype = torch.device(device), array.shape, torch.float32
        self.used_on: list[int] = []
        self._contiguous, self._offset, self._rig = contiguous, offset, rig
        with rig.engine_context():
            self._memory = rig.gpu.driver.mem_alloc(offset + max(array.nbytes, 1))
        self._bytes = rig.gpu.memory_at(self.data_ptr(), array.nbytes, "a tensor")
        self.fill(array)

    def fill(self, array: np.ndarray) -> None:
        """Write at once."""
        self._bytes[:] = array.reshape(-1).view(np.uint8)

    def numpy(self) -> np.ndarray:
        return self._bytes.view(np.float32).reshape(self.shape).copy()

    def data_ptr(self) -> int:
        return int(self._memory) + self._offset

    def is_contiguous(self) -> bool:
        return self._contiguous

    def record_stream(self, stream: FakeStream) -> None:
        self.used_on.append(stream.cuda_stream)


class FakeTorch:
    """What `torch.cuda` and `torch.empty` are on a rig, until the test ends.

    Attributes:
        current: the current stream.
        allocated: tensors that `torch.empty` made.
        error: raised by the next `torch.empty`.
    """

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.current = self.new_stream()
        self.allocated: list[FakeTensor] = []
        self.error: Exception | None = None
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(
            torch.cuda, "ExternalStream", lambda handle, device: FakeStream(rig.gpu.streams[handle])
        )
        monkeypatch.setattr(torch, "empty", self._empty)

    def new_stream(self) -> FakeStream:
        with self.rig.engine_context():
            return FakeStream(Stream(self.rig.gpu, 0))

    def tensor(self, array: np.ndarray, **more: Any) -> FakeTensor:
        return FakeTensor(self.rig, array, **more)

    def later(self, tensor: FakeTensor, array: np.ndarray) -> FakeTensor:
        """Write a tensor when the current stream gets there."""
        self.current.stream.enqueue(lambda: tensor.fill(array))
        return tensor

    def read(self, tensor: FakeTensor) -> np.ndarray:
        """What the current stream sees in a tensor."""
        with self.rig.engine_context():
            self.current.stream.synchronize()
        return tensor.numpy()

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> FakeTensor:
        if self.error is not None:
            raise self.error
        # garbage, as memory is that was used before
        self.allocated.append(FakeTensor(self.rig, np.full(shape, np.nan, np.float32)))
        return self.allocated[-1]


def counted(fake: FakeTorch) -> SimpleNamespace:
    """Calls so far: of the GPU and of TensorRT by name, and what PyTorch allocated."""
    return SimpleNamespace(calls=fake.rig.gpu.calls.copy(), allocated=len(fake.allocated))
