"""The runner against a GPU and a TensorRT that fail on misuse: nothing here needs either."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from engines import EngineError, EngineInputError, EngineLoadError, EngineRunError, Runner
from tests.helpers.trt_rig import Rig, expected, images, reference


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
        compute = reference(tmp_path, "open")
        for turn, batch in enumerate([4, 4, 4, 4, 3, 4, 4, 4]):
            x = images(batch, seed=turn)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], compute(x))
        # first of a shape: plain; second: captured and launched; a change of shape starts anew
        assert rig.gpu.launches == 3 + 2
        assert runner.captured == 1
        assert runner.notes == []
    gc.collect()
    del runner
    rig.trt.assert_clean()


def test_shapes_that_alternate_are_captured_in_contexts_of_their_own(
    rig10: Rig, open_plan: Path, tmp_path: Path
):
    compute = reference(tmp_path, "open")
    with rig10.engine.load(open_plan, contexts=3) as runner:
        for turn in range(12):
            x = images((1, 8, 4)[turn % 3], seed=turn)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], compute(x))
        assert runner.captured == 3
        assert rig10.gpu.launches == 12 - 3  # but for the first run of each
        assert rig10.trt.executions == 3 + 3
        # one more shape costs the graph of the least recent use alone
        runner.infer({"x": images(2)})
        for batch in (8, 4):
            runner.infer({"x": images(batch)})
        assert rig10.gpu.launches == 9 + 2


def test_without_graphs_nothing_is_captured(rig10: Rig, plan: Path):
    with rig10.engine.load(plan, cuda_graph=False) as runner:
        for _ in range(3):
            runner.infer({"x": images()})
        assert runner.captured == 0
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
        assert "they need cuda-bindings>=" in runner.notes[0]


def test_kernels_that_still_compile_are_not_captured(rtx: Rig, plan: Path):
    rtx.trt.capturable = False
    with rtx.engine.load(plan) as runner:
        for _ in range(3):
            runner.infer({"x": images()})
        assert rtx.gpu.launches == 0
        rtx.trt.capturable = True
        runner.infer({"x": images()})
    assert rtx.gpu.launches == 1


def test_rtx_contexts_run_in_memory_that_they_are_given(rtx: Rig, open_plan: Path, tmp_path: Path):
    rtx.trt.context_bytes = 3000
    with rtx.engine.load(open_plan, contexts=2) as runner:
        assert sum(data.size for data in rtx.gpu.device.values()) == 2 * (3000 + 2 * 8 * 8 * 4)
        for seed in range(3):  # plainly, captured, launched
            x = images(3, seed)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], expected(tmp_path, x, "open"))
        assert runner.captured == 1
    del runner
    gc.collect()
    rtx.trt.assert_clean()  # no kernel was captured that another is being compiled for


def test_two_threads_on_two_contexts(rig: Rig, open_plan: Path, tmp_path: Path):
    wrong: list[str] = []

    def work(runner: Runner, seed: int) -> None:
        for turn in range(30):
            x = images(1 + (seed + turn) % 8, seed=100 * seed + turn)
            if not np.array_equal(runner.infer({"x": x})["y"], expected_of[seed, turn]):
                wrong.append(f"thread {seed}, turn {turn}")

    compute = reference(tmp_path, "open")
    expected_of = {
        (seed, turn): compute(images(1 + (seed + turn) % 8, seed=100 * seed + turn))
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


def test_a_hundred_loads_leave_nothing(rig: Rig, plan: Path):
    for _ in range(100):
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
    gc.collect()  # contextlib of Python 3.12 leaves the driver's error in a circle with its frames, which know the stream
    rig.gpu.assert_clean()


def test_closing_after_a_loss_hides_nothing(rig: Rig, plan: Path):
    """The error that a `with` block ends with is the loss, not what closing then meets."""
    with pytest.raises(EngineRunError, match="unspecified launch failure"), rig.engine.load(plan) as runner:
        for _ in range(3):  # a graph is there to be destroyed
            runner.infer({"x": images()})
        rig.gpu.fail_with = "unspecified launch failure"
        runner.infer({"x": images()})


def test_one_context_that_fails_does_not_keep_the_others(
    rig: Rig, plan: Path, monkeypatch: pytest.MonkeyPatch
):
    runner = rig.engine.load(plan, contexts=3)
    for _ in range(6):
        runner.infer({"x": images()})

    def fails() -> None:
        raise rig.gpu.driver.Error("cuStreamSynchronize failed: unspecified launch failure")

    first = runner._slots[0]
    monkeypatch.setattr(first._stream, "synchronize", fails)
    with pytest.raises(EngineRunError, match="Fake GPU failed during a run"):
        runner.close()
    del runner, first
    monkeypatch.undo()
    gc.collect()
    rig.trt.assert_clean()


def test_a_device_that_is_lost_is_let_go(rig: Rig, plan: Path):
    runner = rig.engine.load(plan, contexts=2)
    rig.gpu.fail_with = "unspecified launch failure"
    with pytest.raises(EngineRunError, match="unspecified launch failure"):
        runner.infer({"x": images()})
    runner.close()  # and says no more
    gc.collect()
    assert not any(rig.trt.live.values())


def test_messages_of_a_long_life_are_bounded(rig10: Rig, plan: Path):
    with rig10.engine.load(plan) as runner:
        library = runner._library
        for number in range(5000):
            library.logger.log(2, f"warning {number}")
            library.logger.log(3, f"note {number}")
        messages = library.messages
        assert len(messages.warnings) <= 1000 and len(messages.notes) <= 1000
        assert messages.warnings[-1] == "warning 4999"


def test_closing_waits_for_a_run_and_releases_who_waits(rig10: Rig, plan: Path):
    runner = rig10.engine.load(plan)
    outcome: list[str] = []

    def late() -> None:
        try:
            runner.infer({"x": images()})
            outcome.append("ran")
        except EngineError as error:
            outcome.append(str(error))

    with runner._slot():  # a run that takes its time
        waiting = threading.Thread(target=late)
        waiting.start()
        while runner._pool.free or not waiting.is_alive():
            pass
        closing = threading.Thread(target=runner.close)
        closing.start()
    closing.join(10)
    waiting.join(10)
    assert not closing.is_alive() and not waiting.is_alive()
    assert outcome and (outcome == ["ran"] or "closed" in outcome[0])


def test_the_fake_notices_misuse(rig10: Rig, plan: Path):
    """What the tests above rest on: each of these is what a runner must not do."""
    from tests.helpers.fake_streams import MisuseError

    driver = rig10.gpu.driver
    with pytest.raises(MisuseError, match="without a current context"):
        driver.mem_alloc(4)
    runner = rig10.engine.load(plan)
    slot = runner._slots[0]
    with runner.device.current():
        with pytest.raises(MisuseError, match="no address was set for x"):
            slot.context.execute_async_v3(slot._stream.handle)
        with pytest.raises(MisuseError, match="page-locked"):
            driver.memcpy_htod_async(slot._device["x"], images(), slot._stream)
        with pytest.raises(MisuseError, match="before it happened"):
            slot._started.record(slot._stream).time_till(slot._ended)
        slot.context.set_tensor_address("x", 1 << 20)
        slot.context.set_tensor_address("y", 1 << 20)
        with pytest.raises(MisuseError, match="are not allocated"):
            slot.context.execute_async_v3(slot._stream.handle)
    runner.close()
