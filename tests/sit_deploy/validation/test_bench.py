from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import engines
from engines import timing
from engines.latency import LatencyStats
from engines.timing import EngineCall, ThroughputCall, TimingOptions, WorkerResult, WorkerSpec
from sit_deploy.bundle import load_bundle
from sit_deploy.doctor import versions
from sit_deploy.errors import InputError
from sit_deploy.validation import bench as module
from sit_deploy.validation.bench import _gpu_speedup, bench, time_around
from sit_deploy.validation.torch_worker import TorchCall
from tests.sit_deploy.conftest import Trained


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the timing was asked for; it answers that PyTorch takes 6, 8 and 10 ms a call and the engine 2 ms."""
    seen: dict[str, Any] = {}

    def alternate(workers: dict[str, WorkerSpec], timing: TimingOptions, *_: Any) -> dict[str, WorkerResult]:
        seen.update(workers=workers, timing=timing)
        # the engine's file must still be there while it is timed
        seen["files"] = {name: Path(spec.args[1] or ".").exists() for name, spec in workers.items()}
        times = {name: (6.0, 8.0, 10.0) if name == "PyTorch" else (2.0, 2.0, 2.0) for name in workers}
        return {
            name: WorkerResult(LatencyStats.from_seconds([t / 1e3 for t in ms]), ms, 1, (0,), True)
            for name, ms in times.items()
        }

    monkeypatch.setattr(module, "alternate", alternate)
    return seen


def test_workers_and_speedup(trained: Trained, asked: dict[str, Any]) -> None:
    result = bench(load_bundle(trained.bundle), timing=TimingOptions(3, 0.25, threads=1))
    assert (asked["timing"].rounds, asked["timing"].seconds) == (3, 0.25)
    torch, ours = asked["workers"]["PyTorch"], asked["workers"]["onnxruntime"]
    # 3: what the batch range is tuned for
    assert torch == WorkerSpec(TorchCall, (trained.bundle, None, 3, 1, "cpu", "float32"), 3)
    engine = ("onnxruntime", trained.bundle / "engine.onnx", 3, 1, None, load_bundle(trained.bundle).origin)
    assert ours == WorkerSpec(EngineCall, engine, 3)
    assert result.to_dict()["speedup"] == {
        "engine": "onnxruntime", "over": "PyTorch", "median": pytest.approx(4), "per_round": pytest.approx([3, 4, 5]),
        "low": pytest.approx(3.5), "high": pytest.approx(4.5), "baseline_ms": 8.0, "candidate_ms": 2.0, "doubt": None,
        "doubted_rounds": [],
    }  # fmt: skip
    assert (result.batch_size, result.threads, result.precision) == (3, 1, "fp32")
    assert result.versions == versions()  # of what was timed, not of what built the bundle


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_clocks_are_those_of_the_device_that_was_timed(
    device: str, trained: Trained, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the first GPU, nor of one that had no part in it."""
    monkeypatch.setattr(module, "torch_device", lambda *_: (device, "float32"))
    monkeypatch.setattr("engines.gpus.telemetry", lambda number: {"name": f"GPU {number}"})
    clocks = bench(trained.bundle, rounds=3).to_dict()["gpu"]
    found = {"name": "GPU 1"} if device == "cuda:1" else None
    assert clocks == {"before": found, "after": found}


def test_options_as_keywords(trained: Trained, asked: dict[str, Any]) -> None:
    """Those of the command, with its defaults; a timing in their place."""
    bundle = load_bundle(trained.bundle)
    bench(bundle, rounds=3, seconds=0.25, threads=1)
    assert asked["timing"] == TimingOptions(3, 0.25, threads=1)
    bench(bundle)
    assert asked["timing"] == TimingOptions(10)
    bench(bundle, rounds=1, timing=None)
    assert asked["timing"].rounds == 1
    for words, message in (
        ({"rounds": 0}, "--rounds must be 1 to 100,000, got 0"),
        ({"seconds": 0}, "--seconds must be"),
        ({"cpus": [10**6]}, "CPU 1000000 cannot be used here"),
        (
            {"rounds": 2, "timing": TimingOptions()},
            "rounds and a timing, which says it too; leave one of them out",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench(bundle, **words)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_a_batch_that_the_engine_does_not_take(batch: int, trained: Trained, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"takes batches of 2 to 4, not {batch}; pass such a --batch-size"):
        bench(load_bundle(trained.bundle), batch_size=batch)
    assert not asked


def test_a_fixed_batch(nano_fp32: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"takes batches of 1, not 2"):
        bench(load_bundle(nano_fp32), batch_size=2)
    assert not asked


def test_a_tensorrt_bundle_on_this_cpu(nano_rtx: Path, asked: dict[str, Any]) -> None:
    result = bench(load_bundle(nano_rtx), engine="onnxruntime")
    assert list(result.results) == ["PyTorch", "onnxruntime"]
    path = asked["workers"]["onnxruntime"].args[1]
    assert asked["files"]["onnxruntime"] and not path.exists()
    with pytest.raises(
        InputError, match=r"holds a tensorrt-rtx engine; --engine can be tensorrt-rtx or onnxruntime"
    ):
        bench(load_bundle(nano_rtx), engine="tensorrt")


def test_what_cannot_be_timed_is_said_before_anything_is_started(
    trained: Trained, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"gone\.pth is not there; pass --checkpoint FILE"):
        bench(load_bundle(trained.bundle), checkpoint=Path("gone.pth"))

    def no_gpu(*_: Any, **__: Any) -> None:
        raise engines.NoGpuError("needs a GPU")

    monkeypatch.setattr("engines.onnxruntime.engine.OnnxRuntime.load", no_gpu)
    with pytest.raises(engines.NoGpuError):
        bench(load_bundle(trained.bundle))
    assert not asked


def test_a_teacher_of_another_task(trained: Trained, nano_fp32: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"takes 112 pixels and has 1000 classes, .* 112 and 7; give the teacher"
    ):
        bench(load_bundle(trained.bundle), teacher=load_bundle(nano_fp32), batch_size=2)
    assert not asked


def test_the_teacher_is_timed_too(trained: Trained, nano_rtx: Path, asked: dict[str, Any]) -> None:
    bundle = load_bundle(trained.bundle)
    result = bench(bundle, teacher=bundle)
    assert list(asked["workers"]) == ["PyTorch", "onnxruntime", "teacher"]
    assert asked["workers"]["teacher"] == asked["workers"]["onnxruntime"]
    over = result.over_teacher
    assert over.macs_ratio == 1 and over.model == "sit_nano" and over.gpu is None
    with pytest.raises(InputError, match="give two bundles of the same engine"):
        bench(bundle, teacher=load_bundle(trained.bundle), engine="tensorrt")


def test_throughput_beside_latency(trained: Trained, asked: dict[str, Any]) -> None:
    bundle = load_bundle(trained.bundle)
    result = bench(
        bundle,
        timing=TimingOptions(3, 0.25, threads=2),
        performance="throughput",
        streams=2,
        teacher=bundle,
        batch_size=2,
    )
    side = "onnxruntime, throughput"
    assert list(asked["workers"]) == ["PyTorch", "onnxruntime", side, "teacher"]
    job = ("onnxruntime", trained.bundle / "engine.onnx", 2, 2, 2, bundle.origin)
    assert asked["workers"][side] == WorkerSpec(ThroughputCall, job, 2) == asked["workers"]["teacher"]
    found = result.to_dict()
    assert found["speedup"]["engine"] == side and found["speedup"]["median"] == 4
    mode = found["performance"]
    assert (mode["mode"], mode["in_flight"], mode["over_latency"]["median"]) == ("throughput", 1, 1)
    assert found["notes"] == ["run at batch 2, and the engine is tuned for 3"]
    assert bench(bundle).to_dict()["performance"]["over_latency"] is None


def test_throughput_that_cannot_be(trained: Trained, nano_rtx: Path, asked: dict[str, Any]) -> None:
    bundle = load_bundle(trained.bundle)
    for words, error, message in (
        ({"streams": 2}, InputError, "pass --performance throughput"),
        ({"performance": "throughput", "streams": 10**6}, engines.EngineLoadError, "streams must be 1 to"),
        ({"performance": "throughput", "timing": TimingOptions(device="cuda")}, InputError, "is the CPU's"),
    ):
        with pytest.raises(error, match=message):
            bench(bundle, **words)
    with pytest.raises(InputError, match="TensorRT-RTX, which has no throughput mode here"):
        bench(load_bundle(nano_rtx), performance="throughput")
    assert not asked


def test_gpu_time_is_compared_where_both_have_it() -> None:
    def timed(*medians: float) -> WorkerResult:
        stats = LatencyStats.from_seconds([1.0])
        return WorkerResult(stats, (1.0,), 1, None, True, stats if medians else None, medians)

    assert _gpu_speedup(timed(4, 6, 9), timed(2, 2, 3)) == 3
    assert _gpu_speedup(timed(4, 6, 9), timed()) is None
    assert _gpu_speedup(timed(4, 60, 9), timed(2, 2, 3)) is None


class OnGpu:
    """A call that takes 1 ms and says that 0.25 ms of them were on a GPU."""

    last_gpu_seconds: float | None = None

    def __call__(self) -> None:
        time.sleep(0.001)
        self.last_gpu_seconds = 0.00025


def test_gpu_time_comes_back_from_a_worker() -> None:
    result = timing.alternate({"a": WorkerSpec(OnGpu, batch_size=2)}, TimingOptions(2, 0.02, 0.0))["a"]
    assert result.gpu.p50_ms == 0.25 and result.gpu.images_per_second == pytest.approx(8000)
    assert result.gpu_round_medians_ms == (0.25, 0.25)
    assert result.gpu.iterations == result.stats.iterations and result.stats.p50_ms >= 1


def test_the_steps_around_the_engine(trained: Trained) -> None:
    found = time_around(load_bundle(trained.bundle), runs=2)
    assert min(found.decode_ms, found.prepare_ms, found.classes_ms) > 0
    assert found.image == "JPEG 500×375"
