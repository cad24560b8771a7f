"""PyTorch tensors on the GPU, used without a copy: stand-ins over the fake GPU's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import EngineInputError
from tests.helpers.trt_rig import Rig, expected, images


class Tensor:
    """What the runner asks of a PyTorch tensor on the GPU, over the fake's memory; stream order is recorded."""

    def __init__(self, rig: Rig, array: np.ndarray, device: str = "cuda:0", contiguous: bool = True) -> None:
        import torch

        self.device, self.shape, self.dtype = torch.device(device), array.shape, torch.float32
        self._contiguous = contiguous
        with rig.engine_context():
            self._memory = rig.gpu.driver.mem_alloc(max(array.nbytes, 1))
        self.bytes = rig.gpu.memory_at(int(self._memory), array.nbytes, "a tensor")
        self.bytes[:] = array.reshape(-1).view(np.uint8)
        self.numpy = lambda: self.bytes.view(np.float32).reshape(self.shape).copy()

    def data_ptr(self) -> int:
        return int(self._memory)

    def is_contiguous(self) -> bool:
        return self._contiguous


@pytest.fixture
def torch_cuda(rig10: Rig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PyTorch's side of the stream order, as calls: theirs before ours, ours before theirs."""
    import torch

    calls: list[str] = []

    class Side:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Side) -> None:
            calls.append(f"{self.name} waits for {other.name} after {rig10.trt.executions} runs")

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: Side("ours"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Side("theirs"))
    monkeypatch.setattr(
        torch, "empty", lambda shape, dtype, device: Tensor(rig10, np.zeros(shape, np.float32))
    )
    return calls


def test_torch_tensors_are_used_where_they_are(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch_cuda: list[str]
):
    with rig10.engine.load(open_plan) as runner:
        x = images(3)
        given = Tensor(rig10, x)
        made = runner.infer_device({"x": given})["y"]
        assert torch_cuda == ["ours waits for theirs after 0 runs", "theirs waits for ours after 1 runs"]
        assert rig10.trt.addresses_seen[-1] == {"x": given.data_ptr(), "y": made.data_ptr()}
        for stream in list(rig10.gpu.streams.values()):  # what PyTorch's stream would wait for
            with runner.device.current():
                stream.synchronize()
        np.testing.assert_array_equal(made.numpy(), expected(tmp_path, x, "open"))
        # back to its own memory, graph and all
        for _ in range(4):
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], expected(tmp_path, x, "open"))


def test_closing_waits_for_what_runs_on_torch_tensors(rig10: Rig, open_plan: Path, torch_cuda: list[str]):
    with rig10.engine.load(open_plan) as runner:
        runner.infer_device({"x": Tensor(rig10, images(2))})
    assert rig10.gpu.violations == []


def test_torch_tensors_that_cannot_be_used(rig10: Rig, open_plan: Path, torch_cuda: list[str]):
    with rig10.engine.load(open_plan) as runner:
        for tensor, message in (
            (images(2), "got ndarray; use infer"),
            (Tensor(rig10, images(2), "cpu"), "is on cpu, the engine on cuda:0"),
            (Tensor(rig10, images(2), "cuda:1"), "is on cuda:1"),
            (Tensor(rig10, images(2), contiguous=False), "not contiguous"),
            (Tensor(rig10, np.zeros((2, 9), np.float32)), r"expected shape \(N, 8\), got \(2, 9\)"),
            (Tensor(rig10, images(9)), "outside what the engine takes"),
        ):
            with pytest.raises(EngineInputError, match=message):
                runner.infer_device({"x": tensor})
    with pytest.raises(EngineInputError, match="closed"):
        runner.infer_device({"x": Tensor(rig10, images(2))})
    assert torch_cuda == []
