"""The runner against a GPU and a TensorRT that fail on misuse: nothing here needs either."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from engines import EngineError, EngineInputError, EngineLoadError, EngineOrigin, EngineRunError, Runner
from engines.errors import EngineNotInstalledError, NoGpuError
from tests.helpers.fake_tensorrt import EngineValidity, make_plan
from tests.helpers.trt_rig import RELEASES, Rig, make_rig


@pytest.fixture(params=RELEASES)
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", request.param)


@pytest.fixture
def rig10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", "tensorrt-10.16.1")


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", "tensorrt-rtx-1.7.1")


@pytest.fixture
def plan(make_mlp: Callable[..., Path], tmp_path: Path) -> Path:
    """Batch 2, fixed."""
    path = tmp_path / "engine.plan"
    path.write_bytes(make_plan(make_mlp().read_bytes()))
    return path


@pytest.fixture
def open_plan(make_mlp: Callable[..., Path], tmp_path: Path) -> Path:
    """Batches of 1 to 8."""
    path = tmp_path / "open.plan"
    path.write_bytes(make_plan(make_mlp(batch="batch", name="open").read_bytes(), batch=(1, 4, 8)))
    return path


def images(batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 8)).astype(np.float32)


def expected(tmp_path: Path, x: np.ndarray, name: str = "mlp") -> np.ndarray:
    return ort.InferenceSession(tmp_path / f"{name}.onnx").run(None, {"x": x})[0]


def test_runs_what_the_graph_says(rig: Rig, plan: Path, tmp_path: Path):
    with rig.engine.load(plan) as runner:
        assert [str(spec) for spec in runner.inputs] == ["float32 (2, 8)"]
        assert [spec.name for spec in runner.outputs] == ["y"]
        results = [runner.infer({"x": images(seed=seed)})["y"] for seed in range(4)]
    for seed, result in enumerate(results):  # none was written over by a later run
        np.testing.assert_array_equal(result, expected(tmp_path, images(seed=seed)))
    del runner
    gc.collect()
    rig.trt.assert_clean()


def test_probe_says_that_it_runs(rig: Rig):
    answer = rig.engine.probe()
    assert answer.can_run and answer.can_build
    assert "Fake GPU" in answer.reason


def test_gpu_time_is_told_apart(rig10: Rig, plan: Path):
    with rig10.engine.load(plan) as runner:
        assert runner.last_gpu_seconds is None
        runner.infer({"x": images()})
        assert runner.last_gpu_seconds > 0


def test_a_shape_is_replayed_from_its_third_run(rig: Rig, open_plan: Path, tmp_path: Path):
    with rig.engine.load(open_plan) as runner:
        for turn, batch in enumerate([4, 4, 4, 4, 3, 4, 4, 4]):
            x = images(batch, seed=turn)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], expected(tmp_path, x, "open"))
        # first of a shape: plain; second: captured and launched; a change of shape starts anew
        assert rig.gpu.launches == 3 + 2
        assert runner.notes == []
    gc.collect()
    del runner
    rig.trt.assert_clean()


def test_without_graphs_nothing_is_captured(rig10: Rig, plan: Path):
    with rig10.engine.load(plan, cuda_graph=False) as runner:
        for _ in range(3):
            runner.infer({"x": images()})
    assert rig10.gpu.launches == 0 and rig10.trt.executions == 3


def test_a_capture_that_fails_is_said_and_done_without(rig: Rig, plan: Path, tmp_path: Path):
    rig.gpu.refuse_capture = True
    with rig.engine.load(plan) as runner:
        for seed in range(4):
            x = images(seed=seed)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], expected(tmp_path, x))
        (note,) = runner.notes
    assert "no CUDA graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in note
    assert rig.gpu.launches == 0


def test_no_bindings_for_graphs(rig10: Rig, plan: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with rig10.engine.load(plan) as runner:
        for _ in range(3):
            runner.infer({"x": images()})
        assert "pip install cuda-bindings" in runner.notes[0]


def test_kernels_that_still_compile_are_not_captured(rtx: Rig, plan: Path):
    rtx.trt.capturable = False
    with rtx.engine.load(plan) as runner:
        for _ in range(3):
            runner.infer({"x": images()})
        assert rtx.gpu.launches == 0
        rtx.trt.capturable = True
        runner.infer({"x": images()})
    assert rtx.gpu.launches == 1


def test_two_threads_on_two_contexts(rig: Rig, open_plan: Path, tmp_path: Path):
    wrong: list[str] = []

    def work(runner: Runner, seed: int) -> None:
        for turn in range(30):
            x = images(1 + (seed + turn) % 8, seed=100 * seed + turn)
            if not np.array_equal(runner.infer({"x": x})["y"], expected_of[seed, turn]):
                wrong.append(f"thread {seed}, turn {turn}")

    expected_of = {
        (seed, turn): expected(tmp_path, images(1 + (seed + turn) % 8, seed=100 * seed + turn), "open")
        for seed in range(4)
        for turn in range(30)
    }
    with rig.engine.load(open_plan, contexts=2) as runner:
        threads = [threading.Thread(target=work, args=(runner, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    del runner, threads
    gc.collect()
    rig.trt.assert_clean()


def test_a_thousand_loads_leave_nothing(rig: Rig, plan: Path):
    for _ in range(1000):
        with rig.engine.load(plan) as runner:
            runner.infer({"x": images()})
            peak = rig.gpu.largest_use
    del runner
    gc.collect()
    assert rig.gpu.largest_use == peak == 2 * 64
    rig.trt.assert_clean()


def test_memory_is_allocated_once(rig10: Rig, open_plan: Path):
    with rig10.engine.load(open_plan) as runner:
        before = set(rig10.gpu.device), set(rig10.gpu.host)
        for batch in (1, 8, 3, 8):
            runner.infer({"x": images(batch)})
        assert (set(rig10.gpu.device), set(rig10.gpu.host)) == before
        assert sum(data.size for data in rig10.gpu.device.values()) == 2 * 8 * 8 * 4


@pytest.mark.parametrize("batch", [0, 9])
def test_a_batch_outside_the_profile(rig10: Rig, open_plan: Path, batch: int):
    with (
        rig10.engine.load(open_plan) as runner,
        pytest.raises(
            EngineInputError, match=r"outside what the engine takes, \(1, 8\) to \(8, 8\)|expected shape"
        ),
    ):
        runner.infer({"x": images(batch)})


def test_wrong_dtype_shape_and_closed(rig10: Rig, plan: Path):
    with rig10.engine.load(plan) as runner:
        with pytest.raises(EngineInputError, match="expected dtype float32, got float64"):
            runner.infer({"x": images().astype(np.float64)})
        with pytest.raises(EngineInputError, match=r"expected shape \(2, 8\), got \(3, 8\)"):
            runner.infer({"x": images(3)})
    with pytest.raises(EngineInputError, match="closed"):
        runner.infer({"x": images()})


def test_strided_input_is_copied(rig10: Rig, plan: Path, tmp_path: Path):
    wide = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)[:, ::2]
    with rig10.engine.load(plan) as runner:
        np.testing.assert_array_equal(runner.infer({"x": wide})["y"], expected(tmp_path, wide.copy()))


def test_truncated_plan(rig: Rig, plan: Path):
    plan.write_bytes(plan.read_bytes()[:-10])
    with pytest.raises(EngineLoadError, match=r"cannot open .*engine\.plan: .*Size mismatch") as caught:
        rig.engine.load(plan)
    assert "\n" not in str(caught.value) and "build it again" in str(caught.value)
    del caught  # its traceback holds what was being opened
    gc.collect()
    rig.trt.assert_clean()


def test_not_a_plan_at_all(rig: Rig, plan: Path):
    plan.write_bytes(b"not a plan at all")
    with pytest.raises(EngineLoadError, match="build it again"):
        rig.engine.load(plan)


def test_rtx_judges_a_plan_before_it_opens_it(rtx: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    rtx.trt.validity = EngineValidity.INVALID
    with pytest.raises(EngineLoadError, match=r"not an engine that TensorRT-RTX can run here"):
        rtx.engine.load(plan)
    rtx.trt.validity = EngineValidity.SUBOPTIMAL
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan).close()
    assert "slower than one built for this GPU" in caplog.text


def origin(rig: Rig, **changes: object) -> EngineOrigin:
    facts = {
        "version": rig.version,
        "target": "sm89 (Fake GPU)",
        "details": {},
        "rebuild": "sit-deploy build X",
    }
    return EngineOrigin(**{**facts, **changes})


def test_engine_of_another_release(rig: Rig, plan: Path):
    with pytest.raises(EngineLoadError) as caught:
        rig.engine.load(plan, origin=origin(rig, version="1.2.3"))
    message = str(caught.value)
    assert f"built by {rig.engine.flavour.title} 1.2.3, and {rig.version} is installed" in message
    assert message.endswith("build it again: sit-deploy build X") and "\n" not in message
    compatible = origin(rig, version="1.2.3", details={"version_compatible": True})
    rig.engine.load(plan, origin=compatible).close()


@pytest.mark.parametrize(
    ("target", "level", "runs"),
    [
        ("sm89 (Fake GPU)", None, True),
        ("sm80,sm86,sm89", None, True),
        ("sm80,sm86", None, False),
        ("sm90 (Other GPU)", None, False),
        ("sm80 (Other GPU)", "ampere_plus", True),
        ("sm80 (Other GPU)", "same_compute_capability", False),
    ],
)
def test_engine_for_another_gpu(rig10: Rig, plan: Path, target: str, level: str | None, runs: bool):
    stale = origin(rig10, target=target, details={"hardware_compatibility": level})
    if runs:
        rig10.engine.load(plan, origin=stale).close()
        return
    with pytest.raises(
        EngineLoadError, match=r"was built for sm\d+(, sm86)?, and GPU 0 here is sm89 \(Fake GPU\)"
    ):
        rig10.engine.load(plan, origin=stale)


def test_rtx_judges_gpus_that_it_was_not_built_for(rtx: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    stale = origin(rtx, target="sm80,sm86")
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan, origin=stale).close()
    assert "built for sm80,sm86, and GPU 0 is sm89" in caplog.text
    rtx.trt.validity = EngineValidity.INVALID
    with pytest.raises(EngineLoadError, match="not an engine that TensorRT-RTX can run here"):
        rtx.engine.load(plan, origin=stale)


def test_another_gpu_of_the_same_kind_is_warned_of(rig10: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        rig10.engine.load(plan, origin=origin(rig10, target="sm89 (Other GPU)")).close()
    assert "was tuned on Other GPU and runs on Fake GPU" in caplog.text


def test_out_of_memory_says_how_much(rig: Rig, plan: Path):
    rig.gpu.memory = 100
    with pytest.raises(
        EngineLoadError, match=r"out of memory on Fake GPU: tensor y needs 0\.0 MiB and finds"
    ) as caught:
        rig.engine.load(plan)
    assert "--batch-size" in str(caught.value)
    del caught
    gc.collect()
    rig.trt.assert_clean()


def test_no_room_for_a_context(rig: Rig, open_plan: Path):
    rig.trt.context_bytes = 2 << 30
    with pytest.raises(
        EngineLoadError, match=r"an execution context needs 2\.00 GiB and finds 1\.00 GiB of 1\.00 GiB"
    ):
        rig.engine.load(open_plan)
    gc.collect()
    rig.trt.assert_clean()


def test_a_gpu_lost_in_a_run(rig: Rig, plan: Path):
    runner = rig.engine.load(plan)
    runner.infer({"x": images()})
    rig.gpu.fail_with = "cuStreamSynchronize failed: unspecified launch failure"
    with pytest.raises(EngineRunError, match=r"Fake GPU failed during a run .*unspecified launch failure"):
        runner.infer({"x": images()})
    with pytest.raises(EngineRunError, match="start the program again"):  # at once, without another call
        runner.infer({"x": images()})


def test_memory_that_runs_out_in_a_run(rig: Rig, plan: Path, tmp_path: Path):
    with rig.engine.load(plan) as runner:
        rig.gpu.exhausted = True
        with pytest.raises(
            EngineLoadError, match=r"out of memory on Fake GPU: a run finds 1\.00 GiB of 1\.00 GiB free"
        ):
            runner.infer({"x": images()})
        rig.gpu.exhausted = False
        np.testing.assert_array_equal(runner.infer({"x": images()})["y"], expected(tmp_path, images()))
    rig.gpu.assert_clean()


def test_closing_after_a_loss_hides_nothing(rig: Rig, plan: Path):
    """The error that a `with` block ends with is the loss, not what closing then meets."""
    with pytest.raises(EngineRunError, match="unspecified launch failure"), rig.engine.load(plan) as runner:
        for _ in range(3):  # a graph is there to be destroyed
            runner.infer({"x": images()})
        rig.gpu.fail_with = "unspecified launch failure"
        runner.infer({"x": images()})


def test_messages_of_a_long_life_are_bounded(rig10: Rig, plan: Path):
    with rig10.engine.load(plan) as runner:
        logger = runner._keep[1]
        for number in range(5000):
            logger.log(2, f"warning {number}")
            logger.log(3, f"note {number}")
        assert len(runner.messages.warnings) <= 1000 and len(runner.messages.notes) <= 1000
        assert runner.messages.warnings[-1] == "warning 4999"


def test_weights_come_from_the_graph(make_mlp: Callable[..., Path], tmp_path: Path, rig10: Rig):
    graph = make_mlp(name="model")
    path = tmp_path / "engine.plan"
    path.write_bytes(make_plan(graph.read_bytes(), stripped=True))
    bare = origin(rig10, details={"strip_weights": True})
    with rig10.engine.load(path, origin=bare) as runner:
        np.testing.assert_array_equal(
            runner.infer({"x": images()})["y"], expected(tmp_path, images(), "model")
        )
    graph.write_bytes(make_mlp(batch=3, name="other").read_bytes())
    with pytest.raises(EngineLoadError, match=r"the weights of .*model\.onnx do not fit the engine"):
        rig10.engine.load(path, origin=bare)
    graph.unlink()
    with pytest.raises(EngineLoadError, match="has no weights of its own"):
        rig10.engine.load(path, origin=bare)


def test_refit_where_the_library_has_none(plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rig = make_rig(monkeypatch, tmp_path, "tensorrt-8.6.0")
    with pytest.raises(EngineLoadError, match="cannot refit engines from ONNX"):
        rig.engine.load(plan, origin=origin(rig, details={"strip_weights": True}))


def test_the_runtime_cache_is_kept_and_taken(rtx: Rig, plan: Path, tmp_path: Path):
    rtx.engine.load(plan).close()
    (kept,) = (tmp_path / "cache" / "tensorrt-rtx").iterdir()
    assert kept.name.endswith(".cache") and rtx.trt.compiled == 1
    rtx.engine.load(plan, contexts=2).close()
    assert rtx.trt.compiled == 1  # nothing more


def test_a_foreign_runtime_cache_is_made_anew(
    rtx: Rig, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rtx.engine.load(plan).close()
    (kept,) = (tmp_path / "cache" / "tensorrt-rtx").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan).close()
    assert "made anew" in caplog.text and kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_only_warns(
    rtx: Rig, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), rtx.engine.load(plan) as runner:
        runner.infer({"x": images()})
    assert "was not kept" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "tpu"])
def test_a_device_that_is_no_gpu(rig10: Rig, plan: Path, device: str):
    with pytest.raises(EngineLoadError, match="run on a GPU"):
        rig10.engine.load(plan, device=device)


def test_a_gpu_that_is_not_there(rig10: Rig, plan: Path):
    with pytest.raises(NoGpuError, match="there is no GPU 3; this machine has 1"):
        rig10.engine.load(plan, device="cuda:3")


def test_without_pycuda(rig10: Rig, plan: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(
        EngineNotInstalledError, match=r"needs PyCUDA; run `pip install sit-deploy\[tensorrt\]`"
    ):
        rig10.engine.load(plan)
    answer = rig10.engine.probe()
    assert answer.can_build and not answer.can_run and "pip install" in answer.remedy


def test_no_context_is_refused(rig10: Rig, plan: Path):
    with pytest.raises(EngineLoadError, match="at least one context, got 0"):
        rig10.engine.load(plan, contexts=0)
    gc.collect()
    rig10.trt.assert_clean()


def test_closing_waits_for_a_run_and_releases_who_waits(rig10: Rig, plan: Path):
    runner = rig10.engine.load(plan)
    outcome: list[str] = []

    def late() -> None:
        try:
            runner.infer({"x": images()})
            outcome.append("ran")
        except EngineError as error:
            outcome.append(str(error))

    with runner._lane():  # a run that takes its time
        waiting = threading.Thread(target=late)
        waiting.start()
        while runner._free.qsize() or not waiting.is_alive():
            pass
        closing = threading.Thread(target=runner.close)
        closing.start()
    closing.join(10)
    waiting.join(10)
    assert not closing.is_alive() and not waiting.is_alive()
    assert outcome and (outcome == ["ran"] or "closed" in outcome[0])


def test_the_fake_notices_misuse(rig10: Rig, plan: Path):
    """What the tests above rest on: each of these is what a runner must not do."""
    from tests.helpers.fake_cuda import MisuseError

    driver = rig10.gpu.driver
    with pytest.raises(MisuseError, match="without a current context"):
        driver.mem_alloc(4)
    runner = rig10.engine.load(plan)
    lane = runner._lanes[0]
    with runner.gpu.current():
        with pytest.raises(MisuseError, match="no address was set for x"):
            lane.context.execute_async_v3(lane._stream.handle)
        with pytest.raises(MisuseError, match="page-locked"):
            driver.memcpy_htod_async(lane._device["x"], images(), lane._stream)
        with pytest.raises(MisuseError, match="before it happened"):
            lane._started.record(lane._stream).time_till(lane._ended)
        lane.context.set_tensor_address("x", 1 << 20)
        lane.context.set_tensor_address("y", 1 << 20)
        with pytest.raises(MisuseError, match="are not allocated"):
            lane.context.execute_async_v3(lane._stream.handle)
    runner.close()


def test_a_process_gives_its_context_back_once(rig10: Rig, plan: Path):
    from engines.cuda import _release_contexts

    for _ in range(3):
        rig10.engine.load(plan).close()
    assert rig10.gpu.detached == 0  # kept for the next
    _release_contexts()
    _release_contexts()
    assert rig10.gpu.detached == 1


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
            with runner.gpu.current():
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
