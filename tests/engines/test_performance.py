"""What is opened for throughput, and how it is kept busy."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
from engines import EngineLoadError
from engines import performance as module
from engines.performance import require_streams
from engines.timing import ThroughputCall, TimingOptions, WorkerSpec, alternate, throughput_worker
from tests.helpers.several_call import SeveralCall


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 4)


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("streams", "threads", "words"),
    [
        (5, None, "streams must be 1 to 4, got 5: each takes a thread at least, of the 4 CPUs here"),
        (3, 2, "streams must be 1 to 2, got 3: .* of 2 threads"),
        (0, None, "streams must be 1 to 4, got 0"),
        (10**9, None, "got 1000000000"),
        (None, 0, "threads must be at least 1"),
    ],
)
def test_streams_that_cannot_be(streams: int | None, threads: int | None, words: str) -> None:
    with pytest.raises(EngineLoadError, match=words):
        require_streams(streams, threads)


@pytest.mark.usefixtures("four_cpus")
def test_streams_that_can_be() -> None:
    for streams, threads in ((None, None), (4, None), (2, 2), (1, 1)):
        require_streams(streams, threads)


@pytest.mark.parametrize("kind", engines.KINDS)
def test_engines_say_whether_they_have_it(kind: str) -> None:
    engine = engines.get(kind)
    assert engine.several_at_once is (kind in ("onnxruntime", "openvino"))
    if not engine.several_at_once:
        with pytest.raises(EngineLoadError, match=r"has no throughput mode here: .* give larger batches"):
            engine.load_for_throughput(Path("engine.plan"))


class Busy:
    """An engine of three calls at a time, which counts those that are under way."""

    def __init__(self) -> None:
        self.at_once = 3
        self.inputs = (engines.TensorSpec("x", (None, 2), "float32"),)
        self.under_way, self.most, self.done, self.closed = 0, 0, 0, False
        self._lock = threading.Lock()

    def load_for_throughput(self, path: Path, **asked: Any) -> Busy:
        self.asked = asked
        return self

    def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert feeds["x"].shape == (5, 2)
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.005)
        with self._lock:
            self.under_way -= 1
            self.done += 1
        return {}

    def close(self) -> None:
        assert self.under_way == 0
        self.closed = True


def test_an_engine_is_kept_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busy = Busy()
    monkeypatch.setattr("engines.timing.get", lambda _: busy)
    call = ThroughputCall("a kind", tmp_path, 5, threads=4, streams=3)
    assert busy.asked == {"threads": 4, "streams": 3, "origin": None}
    assert (call.in_flight, call.batches) == (3, 3)
    for _ in range(4):
        call()
    assert busy.most == 3 and busy.done + busy.under_way >= 12
    call.rest()
    assert busy.under_way == 0 and 12 <= busy.done <= 14  # those that were under way are done too
    call()
    call.close()
    assert busy.closed


def test_a_failure_in_flight_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busy = Busy()
    monkeypatch.setattr("engines.timing.get", lambda _: busy)
    call = ThroughputCall("a kind", tmp_path, 4)  # the wrong batch
    with pytest.raises(AssertionError):
        call()


def test_times_are_a_batchs_share() -> None:
    found = alternate({"a": WorkerSpec(SeveralCall, batch_size=8)}, TimingOptions(2, 0.05, 0.0))["a"]
    assert found.in_flight == 2
    assert found.stats.min_ms >= 5 and found.stats.images_per_second <= 8 / 5e-3
    assert found.stats.p50_ms < 20  # of a call it would be at least that


def test_a_real_engine_for_throughput(make_mlp, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "engine.onnx"
    engines.get("onnxruntime").build(make_mlp(batch="batch"), path, engines.BuildOptions())
    timing = TimingOptions(1, 0.02, 0.0, threads=2)
    found = alternate({"a": throughput_worker("onnxruntime", path, 4, timing, 2)}, timing)["a"]
    assert found.in_flight == 2 and found.stats.iterations >= 3
