"""The factories are the standard library's, so that a spawned worker can import them."""

from __future__ import annotations

import functools
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from engines import BuildOptions, EngineError
from engines.latency import Histogram, LatencyStats, percentile
from engines.pace import of_laps
from engines.timing import (
    EngineCall,
    TimingOptions,
    WorkerSpec,
    alternate,
    machine,
)
from engines.worker import Slice

QUICK = TimingOptions(rounds=2, seconds=0.02, warmup_seconds=0.0)


def sleeper(seconds: float, **more) -> WorkerSpec:
    return WorkerSpec(functools.partial, (time.sleep, seconds), **more)


def test_statistics_agree_with_numpy():
    samples = np.random.default_rng(0).gamma(2.0, 0.01, 101)
    stats = LatencyStats.from_seconds(samples.tolist(), batch_size=8)
    for percent, value in ((50, stats.p50_ms), (90, stats.p90_ms), (99, stats.p99_ms)):
        assert value == pytest.approx(1e3 * np.percentile(samples, percent))
    assert stats.mean_ms == pytest.approx(1e3 * samples.mean())
    assert stats.min_ms == pytest.approx(1e3 * samples.min())
    assert stats.iterations == 101
    assert stats.images_per_second == pytest.approx(8 / np.median(samples))


def test_percentile_of_one_and_two():
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.5


@pytest.mark.parametrize(("samples", "batch"), [([], 1), ([0.1], 0)])
def test_statistics_of_nothing(samples: list, batch: int):
    with pytest.raises(EngineError):
        LatencyStats.from_seconds(samples, batch)


def test_a_round_counts_once_however_many_calls_it_has():
    """A round in which the machine was held up has few calls; all calls together would hardly see it."""
    fast, held_up = [0.001] * 1000, [0.050] * 20
    found = LatencyStats.from_rounds([held_up, fast, held_up], batch_size=2)
    assert (found.p50_ms, found.images_per_second) == pytest.approx((50, 40))
    assert found.p99_ms >= found.p90_ms >= found.p50_ms
    assert (found.iterations, found.min_ms) == (1040, 1)


def test_alternate_times_each_worker_in_its_own_process():
    steps = []
    cpu = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    results = alternate(
        {
            "short": sleeper(0.001, batch_size=4),
            "long": sleeper(0.004, cpus=None if cpu is None else (cpu,)),
        },
        QUICK,
        progress=lambda *step: steps.append(step),
    )
    assert list(results) == ["short", "long"]
    # A sleep is never shorter than asked for, whatever else the machine does.
    assert results["short"].stats.min_ms >= 1.0
    assert results["long"].stats.min_ms >= 4.0
    assert results["short"].stats.iterations >= 6
    assert len(results["long"].round_medians_ms) == 2
    assert results["short"].quiet
    assert all(len(one.pace) == 2 and 0 < min(one.pace) <= max(one.pace) <= 1 for one in results.values())
    if cpu is not None:
        assert results["long"].cpus == (cpu,)
    assert [phase for phase, _, _ in steps] == [
        *("starting short", "starting long"),
        *("timing short", "timing long", "timing short", "timing long"),
        "timing",
    ]
    assert [done for _, done, _ in steps] == list(range(7))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (WorkerSpec(operator.truediv, (1, 0)), "worker bad failed: ZeroDivisionError: division"),
        (WorkerSpec(functools.partial, (int, "x")), "worker bad failed: ValueError: invalid"),
        (WorkerSpec(os._exit, (3,)), "worker bad died while it was being timed: exit status 3"),
        (WorkerSpec(functools.partial, (os._exit, 4)), "worker bad died .*: exit status 4"),
        (
            WorkerSpec(functools.partial, (signal.raise_signal, signal.SIGKILL)),
            "worker bad died .*: killed by SIGKILL",
        ),
        (WorkerSpec(lambda: time.sleep), "worker bad: .*must be picklable"),
        (sleeper(0.001, cpus=(99999,)), "worker bad failed: "),
    ],
)
def test_a_failing_worker_is_one_line_and_takes_the_others_down(spec: WorkerSpec, message: str):
    with pytest.raises(EngineError, match=message) as caught:
        alternate({"good": sleeper(0.001), "bad": spec}, QUICK)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"seconds": 0}, {"warmup_seconds": -1}])
def test_bad_arguments(bad: dict):
    with pytest.raises(EngineError, match="at least one worker"):
        alternate({"a": sleeper(0.001)}, replace(QUICK, **bad))


def test_an_engine_is_timed_and_its_errors_come_back(make_mlp, tmp_path):
    pytest.importorskip("onnxruntime")
    import engines

    path = tmp_path / "engine.onnx"
    engines.get("onnxruntime").build(make_mlp(batch="batch"), path, BuildOptions())
    spec = WorkerSpec(EngineCall, ("onnxruntime", path, 4, 1), batch_size=4)
    found = alternate({"engine": spec}, QUICK)["engine"]
    assert found.stats.iterations >= 6
    assert found.threads is None or found.threads >= 1
    missing = WorkerSpec(EngineCall, ("onnxruntime", tmp_path / "none.onnx"))
    with pytest.raises(EngineError, match=r"worker engine failed: .*no such engine file"):
        alternate({"engine": missing}, QUICK)


def test_paces_are_shares_of_the_fastest_lap_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose CPU is slow throughout is slow by another's laps."""

    class Fake:
        threads, cpus, batch_size, in_flight = 1, (0,), 1, 1

        def __init__(self, name: str, *_: object) -> None:
            self.lap = {"held up": 4e-4, "free": 1e-4}[name]

        def time(self, _: float) -> Slice:
            return Slice([0.01], [], None, of_laps([self.lap] * 5), True)

        def stop(self, *, gently: bool) -> None:
            assert gently

    monkeypatch.setattr("engines.timing.Worker", Fake)
    found = alternate({"held up": sleeper(0.01), "free": sleeper(0.01)}, TimingOptions(rounds=2))
    assert found["held up"].pace == pytest.approx((0.25, 0.25)) and found["free"].pace == pytest.approx(
        (1, 1)
    )


def test_machine_is_described():
    here = machine()
    assert here.cpu_model
    assert 1 <= here.usable_cpus <= here.logical_cpus


SCRIPT = """
import functools, multiprocessing, time
from engines.timing import TimingOptions, WorkerSpec, alternate

def progress(phase, done, total):
    if phase == "timing b":
        for child in multiprocessing.active_children():
            print(child.pid, flush=True)

if __name__ == "__main__":
    spec = WorkerSpec(functools.partial, (time.sleep, 0.001))
    alternate({"a": spec, "b": spec}, TimingOptions(1000, 0.05, 0.0), progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_takes_the_workers_down(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1  # the parent's own; the workers say nothing
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# -------------------------------------------------------------------------------------------------------- histograms


def test_a_histogram_counts_every_call():
    samples = np.random.default_rng(1).gamma(2.0, 0.01, 997)
    found = Histogram.from_seconds(samples.tolist(), bins=25)
    assert len(found.counts) == 25 and len(found.edges_ms) == 26
    assert sum(found.counts) == 997
    assert found.edges_ms[0] == pytest.approx(1e3 * samples.min())
    assert found.edges_ms[-1] == pytest.approx(1e3 * np.percentile(samples, 99))
    whole, _ = np.histogram(1e3 * samples, np.array([*found.edges_ms[:-1], 1e9]))
    assert np.abs(whole - np.array(found.counts)).max() <= 1  # a call on an edge may round to either side


def test_a_histogram_of_calls_that_took_the_same():
    found = Histogram.from_seconds([0.002] * 5)
    assert sum(found.counts) == 5 and found.counts[0] == 5
    with pytest.raises(EngineError, match="no latency samples"):
        Histogram.from_seconds([])


def test_workers_bring_their_histogram():
    found = alternate({"a": sleeper(0.001)}, QUICK)["a"]
    assert sum(found.histogram.counts) == found.stats.iterations
