"""PyTorch tensors on the GPU: where they are used, what a call costs, and in which order, over the fake GPU."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch, whose tensors are stood in for")

from engines import EngineInputError, EngineLoadError, EngineRunError
from engines.tensorrt.runner import TensorRTRunner
from tests.helpers.fake_torch import FakeTorch, counted
from tests.helpers.trt_rig import Rig, expected, images, reference


@pytest.fixture
def torch10(rig10: Rig, monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    return FakeTorch(rig10, monkeypatch)


def captured(runner: TensorRTRunner, fake: FakeTorch, batch: int = 3, **more: object) -> dict:
    """Run a batch until it is captured; returns the tensors that it ran on."""
    x = fake.tensor(images(batch))
    for _ in range(3):
        made = runner.infer_device({"x": x}, **more)
    assert runner.captured == 1
    return {"x": x, **made}


def test_tensors_are_used_where_they_are(rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch):
    compute = reference(tmp_path, "open")
    with rig10.engine.load(open_plan) as runner:
        x = images(3)
        given = torch10.later(
            torch10.tensor(np.zeros_like(x)), x
        )  # still being written when the call is made
        made = runner.infer_device({"x": given})["y"]
        assert rig10.trt.addresses_seen[-1] == {"x": given.data_ptr(), "y": made.data_ptr()}
        np.testing.assert_array_equal(torch10.read(made), compute(x))
        for seed in range(4):  # back to its own memory, graph and all
            x = images(3, seed)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], compute(x))
        x = images(3, 9)
        np.testing.assert_array_equal(
            torch10.read(runner.infer_device({"x": torch10.tensor(x)})["y"]), compute(x)
        )


def test_a_captured_call_into_tensors_that_stay_is_one_launch(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch
):
    compute = reference(tmp_path, "open")
    with rig10.engine.load(open_plan) as runner:
        x, out = torch10.tensor(images(3)), {"y": torch10.tensor(np.zeros((3, 8), np.float32))}
        for _ in range(3):
            runner.infer_device({"x": x}, out)
        for seed in range(5):
            before = counted(torch10)
            assert runner.infer_device({"x": torch10.later(x, images(3, seed))}, out) is out
            after = counted(torch10)
            # no shape, no address, no execution, no allocation, no copy: the launch, and the end of the turn marked
            assert after.calls - before.calls == {"cuGraphLaunch": 1, "cuEventRecord": 1}
            assert after.allocated == before.allocated
            np.testing.assert_array_equal(torch10.read(out["y"]), compute(images(3, seed)))
    assert rig10.trt.executions == 2  # plainly, and for the capture


def test_tensors_that_move_are_copied_on_the_device_and_captured_twice_at_most(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch
):
    compute = reference(tmp_path, "open")
    with rig10.engine.load(open_plan) as runner:
        kept = []
        for seed in range(8):
            before = counted(torch10)
            x = torch10.tensor(images(3, seed))
            made = runner.infer_device({"x": x})["y"]
            after = counted(torch10)
            kept.append((made, seed, x))
        assert after.calls - before.calls == {
            "mem_alloc": 2,  # of the test's tensor, and of PyTorch's stand-in for the output
            "cuMemcpyDtoDAsync": 2,  # in and out
            "cuGraphLaunch": 1,
            "cuEventRecord": 1,
        }
        assert after.allocated == before.allocated + 1
        assert rig10.trt.executions == 2
        for made, seed, _ in kept:  # what was returned before stays what it was
            np.testing.assert_array_equal(torch10.read(made), compute(images(3, seed)))

        # an input that stays for a while and then moves costs one more capture, and no more after that
        tensors = [torch10.tensor(images(2, seed)) for seed in range(3)]
        out = {"y": torch10.tensor(np.zeros((2, 8), np.float32))}
        for turn in (0, 0, 0, 1, 2, 0, 1):
            runner.infer_device({"x": tensors[turn]}, out)
            np.testing.assert_array_equal(torch10.read(out["y"]), compute(images(2, turn)))
        assert rig10.trt.executions == 2 + 3


def test_a_change_of_shape_starts_anew(rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch):
    compute = reference(tmp_path, "open")
    with rig10.engine.load(open_plan) as runner:
        for turn, batch in enumerate([4, 4, 4, 3, 4, 4, 4, 1, 1]):
            x = torch10.tensor(images(batch, turn))
            made = runner.infer_device({"x": x})["y"]
            assert made.shape == (batch, 8)
            np.testing.assert_array_equal(torch10.read(made), compute(images(batch, turn)))
        assert rig10.gpu.launches == 2 + 2 + 1


@pytest.mark.parametrize("graph", [True, False])
def test_calls_on_several_streams_keep_their_order(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch, graph: bool
):
    """One slot's memory is used from three streams and from the host in turn, while all of them run side by side."""
    compute = reference(tmp_path, "open")
    rig10.gpu.interleave = True
    streams = [torch10.new_stream() for _ in range(3)]
    made = []

    def call(turn: int) -> None:
        torch10.current = streams[turn % 3]
        x = torch10.later(torch10.tensor(np.zeros((3, 8), np.float32)), images(3, turn))
        made.append((torch10.current, runner.infer_device({"x": x})["y"], images(3, turn), x))

    with rig10.engine.load(open_plan, cuda_graph=graph) as runner:
        for turn in range(7):
            call(turn)
        np.testing.assert_array_equal(runner.infer({"x": images(3, 50)})["y"], compute(images(3, 50)))
        for turn in range(7, 12):
            call(turn)
        for stream, y, x, _ in reversed(made):
            torch10.current = stream
            np.testing.assert_array_equal(torch10.read(y), compute(x))


@pytest.mark.parametrize("first", ["host", "plain", "another shape"])
def test_the_first_launch_on_a_stream_waits_for_what_ran_before(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch, first: str
):
    compute = reference(tmp_path, "open")
    rig10.gpu.interleave = True
    with rig10.engine.load(open_plan) as runner:
        if first == "host":
            for _ in range(2):
                runner.infer({"x": images(3)})
        if first == "another shape":
            captured(runner, torch10, 2)
        x = [torch10.later(torch10.tensor(np.zeros((3, 8), np.float32)), images(3, n)) for n in range(2)]
        early = runner.infer_device({"x": x[0]})["y"]
        before, torch10.current = torch10.current, torch10.new_stream()
        late = runner.infer_device({"x": torch10.later(x[1], images(3, 1))})["y"]
        np.testing.assert_array_equal(torch10.read(late), compute(images(3, 1)))
        torch10.current = before
        np.testing.assert_array_equal(torch10.read(early), compute(images(3, 0)))


def test_memory_of_another_stream_is_told_where_it_is_used(rig10: Rig, open_plan: Path, torch10: FakeTorch):
    with rig10.engine.load(open_plan) as runner:
        for _ in range(3):  # plainly, and by the graph
            x, y = torch10.tensor(images(3)), torch10.tensor(images(3))
            runner.infer_device({"x": x}, {"y": y})
            assert x.used_on == y.used_on == [torch10.current.cuda_stream]


def test_closing_waits_for_what_runs_on_torch_tensors(rig10: Rig, open_plan: Path, torch10: FakeTorch):
    for calls in (1, 3):
        with rig10.engine.load(open_plan) as runner:
            for _ in range(calls):
                runner.infer_device({"x": torch10.tensor(images(2))})
        assert rig10.gpu.violations == []
    del runner
    gc.collect()
    assert not rig10.gpu.live_graphs and not rig10.gpu.live_events


def test_without_bindings_for_graphs(
    rig10: Rig, open_plan: Path, tmp_path: Path, torch10: FakeTorch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with rig10.engine.load(open_plan) as runner:
        for seed in range(3):
            made = runner.infer_device({"x": torch10.tensor(images(2, seed))})["y"]
            np.testing.assert_array_equal(torch10.read(made), expected(tmp_path, images(2, seed), "open"))
    assert rig10.gpu.launches == 0 and rig10.trt.executions == 3


def test_tensors_that_cannot_be_used(rig10: Rig, open_plan: Path, torch10: FakeTorch):
    good, zeros = torch10.tensor(images(2)), np.zeros((2, 8), np.float32)
    with rig10.engine.load(open_plan) as runner:
        for tensor, message in (
            (images(2), "got ndarray; use infer"),
            (torch10.tensor(images(2), device="cpu"), "is on cpu, the engine on cuda:0"),
            (torch10.tensor(images(2), device="cuda:1"), "is on cuda:1"),
            (torch10.tensor(images(2), contiguous=False), "not contiguous"),
            (torch10.tensor(images(2), offset=4), r"no multiple of 256 bytes; pass it through \.clone\(\)"),
            (torch10.tensor(np.zeros((2, 9), np.float32)), r"expected shape \(N, 8\), got \(2, 9\)"),
            (torch10.tensor(images(9)), "outside what the engine takes"),
        ):
            for _ in range(2):  # a refusal is not remembered as a good one
                with pytest.raises(EngineInputError, match=message):
                    runner.infer_device({"x": tensor})
        for out, message in (
            ({}, "out needs a tensor for each output and no other: y; got none"),
            ({"y": good, "z": good}, "got y, z"),
            ({"y": zeros}, "output y: expected a PyTorch tensor"),
            ({"y": torch10.tensor(images(3))}, r"output y: expected shape \(2, 8\), got \(3, 8\)"),
            ({"y": torch10.tensor(zeros, contiguous=False)}, "output y is not contiguous"),
        ):
            with pytest.raises(EngineInputError, match=message):
                runner.infer_device({"x": good}, out)
    assert rig10.trt.executions == 0
    with pytest.raises(EngineInputError, match="closed"):
        runner.infer_device({"x": good})


class AcceleratorError(RuntimeError):
    """As PyTorch names it from 2.8 on; before, it is a plain RuntimeError."""


class OutOfMemoryError(RuntimeError):
    """As `torch.OutOfMemoryError`."""


@pytest.mark.parametrize("kind", [RuntimeError, AcceleratorError])
def test_pytorch_s_errors_are_the_gpu_s(rig10: Rig, open_plan: Path, torch10: FakeTorch, kind: type):
    runner = rig10.engine.load(open_plan)
    torch10.error = kind("CUDA error: an illegal memory access was encountered")
    with pytest.raises(EngineRunError, match=r"Fake GPU failed during a run .*illegal memory access"):
        runner.infer_device({"x": torch10.tensor(images(2))})
    torch10.error = None
    with pytest.raises(EngineRunError, match="start the program again"):  # at once, without another call
        runner.infer_device({"x": torch10.tensor(images(2))})
    with pytest.raises(EngineRunError, match="start the program again"):
        runner.infer({"x": images(2)})
    assert rig10.trt.executions == 0
    runner.close()


def test_pytorch_s_memory_that_runs_out_loses_nothing(rig10: Rig, open_plan: Path, torch10: FakeTorch):
    with rig10.engine.load(open_plan) as runner:
        torch10.error = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        with pytest.raises(EngineLoadError, match="out of memory on Fake GPU: a run finds"):
            runner.infer_device({"x": torch10.tensor(images(2))})
        torch10.error = RuntimeError("a mistake of ours")
        with pytest.raises(RuntimeError, match="of ours"):
            runner.infer_device({"x": torch10.tensor(images(2))})
        torch10.error = None
        runner.infer_device({"x": torch10.tensor(images(2))})


def test_a_launch_that_the_driver_refuses(rig10: Rig, open_plan: Path, torch10: FakeTorch):
    runner = rig10.engine.load(open_plan)
    tensors = captured(runner, torch10)
    rig10.gpu.refuse_launch = 2
    with pytest.raises(EngineLoadError, match="out of memory on Fake GPU"):
        runner.infer_device({"x": tensors["x"]})
    rig10.gpu.refuse_launch = 719
    with pytest.raises(EngineRunError, match=r"failed during a run \(CUDA_ERROR_LAUNCH_FAILED\)"):
        runner.infer_device({"x": tensors["x"]})
    with pytest.raises(EngineRunError, match="start the program again"):
        runner.infer({"x": images(3)})
    runner.close()
