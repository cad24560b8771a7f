"""What a busy machine does to timings, planted: no clock decides here."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engines import EngineError, cpu
from engines import speedup as module
from engines.latency import LatencyStats
from engines.speedup import Speedup, held_up, of_rounds, speedup, times_doubt
from engines.timing import TimingOptions, WorkerResult, WorkerSpec, alternate


def timed(
    *rounds_ms: float,
    fastest: float | None = None,
    others: tuple[float, ...] = (),
    pace: tuple[float, ...] = (),
) -> WorkerResult:
    """A worker that took so long in each round."""
    seconds = [[ms / 1e3] * 5 for ms in rounds_ms]
    seconds[0] = [fastest / 1e3, *seconds[0]] if fastest is not None else seconds[0]
    return WorkerResult(LatencyStats.from_rounds(seconds), rounds_ms, 1, (0,), True, others=others, pace=pace)


def compare(theirs: WorkerResult, ours: WorkerResult) -> Speedup:
    return speedup(theirs, ours, ("PyTorch", "the engine"))


def test_the_median_of_the_rounds_ratios_with_quartiles_and_times_of_the_same_rounds() -> None:
    found = compare(timed(6, 8, 8.4, 8, 9), timed(3, 4, 4, 4, 4.5))
    assert found.per_round == pytest.approx((2, 2, 2.1, 2, 2))
    assert (found.median, found.low, found.high) == pytest.approx((2, 2, 2))
    assert (found.baseline_ms, found.candidate_ms, found.doubt) == (8, 4, None)
    assert not found.slower
    assert compare(timed(4, 4, 4), timed(4, 4, 4)).slower
    assert found.to_dict()["per_round"] == list(found.per_round)


def test_workers_of_other_rounds() -> None:
    for pair in ((timed(1), timed(1, 2)), (timed(1, 1), timed(1))):
        with pytest.raises(EngineError, match="same rounds"):
            compare(*pair)


def test_one_bad_round_decides_nothing() -> None:
    found = compare(timed(20, 20, 200, 20, 20), timed(10, 10, 10, 10, 10))
    assert (found.median, found.doubt) == (2, None)
    assert (found.baseline_ms, found.candidate_ms) == (20, 10)


def test_a_machine_that_slows_down_slows_both() -> None:
    found = compare(timed(10, 14, 18, 22, 26), timed(5, 7, 9, 11, 13))
    assert (found.median, found.doubt) == (2, None)


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (timed(8, 8), timed(4, 4), "2 rounds say nothing of the spread"),
        (timed(8), timed(4), "1 round says nothing of the spread"),
        # bursts that hit one side and then the other
        (
            timed(27, 30, 9, 28, 11),
            timed(3, 8.7, 3.2, 8.1, 3.3),
            "the medians of the two are 8.18× apart, the rounds 3.45×",
        ),
        (timed(8, 8, 20, 20, 20), timed(4, 4, 4, 4, 9), "half of the rounds lie between 2.00× and 5.00×"),
        (timed(10, 10, 11, 9, 10), timed(9, 11, 10, 10, 10), "the rounds lie on both sides of 1"),
        (
            timed(9, 9, 9, 9, 9, fastest=2),
            timed(3, 3, 3, 3, 3),
            "PyTorch was held up: its median call took 4.5 times",
        ),
        (timed(9, 9, 9), timed(6, 6, 6, fastest=1), "the engine was held up"),
        (
            timed(9, 9, 9, others=(0.5, 0.4, 0.0)),
            timed(3, 3, 3),
            "other programs took 40% of the CPUs while PyTorch",
        ),
        (
            timed(9, 9, 9),
            timed(3, 3, 3, others=(0.9, 0.9, 0.9)),
            "took 90% of the CPUs while the engine was timed",
        ),
        (
            timed(9, 9, 9, pace=(0.3, 0.9, 0.2)),
            timed(3, 3, 3, pace=(1.0, 0.9, 0.9)),
            "PyTorch was held up: a loop of fixed work in the same slices ran at 30% of its usual rate",
        ),
        # all calls of one side alike, and nothing else told: only the work that it is known to have done tells
        (
            timed(5244, 5250, 5240),
            timed(2, 2, 2),
            "PyTorch did its work at a 2622th of the rate of the engine; below a 100th it was held up at every step",
        ),
        (timed(2, 2, 2), timed(400, 400, 400), "the engine did its work at a 200th of the rate of PyTorch"),
    ],
)
def test_what_the_rounds_do_not_bear_out(theirs: WorkerResult, ours: WorkerResult, words: str) -> None:
    found = compare(theirs, ours)
    assert words in (found.doubt or "")
    assert not found.slower
    if "both sides of 1" in words:  # measured: neither is faster
        assert found.measurable and found.low < 1 < found.high
        return
    # nothing that could be taken for a figure is left, wherever it goes
    assert not found.measurable and (found.median, found.low, found.high, found.per_round) == (None,) * 3 + (
        (),
    )
    told = found.to_dict()
    assert (told["median"], told["per_round"]) == (None, [])
    assert told["doubted_rounds"] == pytest.approx(
        [a / b for a, b in zip(theirs.round_medians_ms, ours.round_medians_ms, strict=True)]
    )


def test_a_side_with_more_to_do_may_be_as_much_slower() -> None:
    """A hundred times the multiply-accumulates at the same rate are a hundred times the time."""
    slow, fast = timed(400, 400, 400), timed(2, 2, 2)
    assert "200th" in (compare(slow, fast).doubt or "")
    assert speedup(slow, fast, ("a", "b"), work=150.0).median == 200
    assert "50000th" in (speedup(timed(2, 2, 2), timed(4, 4, 4), ("a", "b"), work=1e5 / 4).doubt or "")


def test_calls_that_were_stopped_leave_their_median() -> None:
    """A worker that was stopped for a minute had a p99 of one, printed as any other."""
    calls = [[0.002] * 30 + [60.0]] + [[0.002] * 30] * 2
    stopped = replace(timed(2, 2, 2), stats=LatencyStats.from_rounds(calls))
    assert (
        stopped.stats.p99_ms > 1000
        and held_up("a", stopped) is None
        and compare(stopped, timed(1, 1, 1)).median == 2
    )
    assert times_doubt("a", timed(2, 2, 2)) is None
    said = times_doubt("the engine", stopped)
    assert said.startswith("the slowest calls of the engine took ") and said.endswith(
        "something stopped them"
    )


def test_a_gpus_clock_bears_out_what_its_rounds_do() -> None:
    assert of_rounds((4, 4, 4.2), (2, 2, 2)) == 2
    assert of_rounds((4, 40, 9, 4), (2, 2, 2, 2)) is None  # somebody else is on the GPU
    assert of_rounds((4,), (2,)) is of_rounds((), ()) is None


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_durations_that_the_clock_cannot_tell(bad: float) -> None:
    for pair in ((timed(2, 2, 2), timed(1, bad, 1)), (timed(bad, bad, bad), timed(bad, bad, bad))):
        found = compare(*pair)
        assert (found.median, found.low, found.high) == (None, None, None)
        assert found.doubt == "a call is too short for this machine's clock" and not found.slower


def test_a_coarse_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 16 ms cannot compare 32 with 16 ms."""
    monkeypatch.setattr(module.time, "get_clock_info", lambda _: SimpleNamespace(resolution=0.016))
    assert "too short" in (compare(timed(32, 32, 32), timed(16, 16, 16)).doubt or "")
    assert compare(timed(3200, 3200, 3200), timed(1600, 1600, 1600)).doubt is None


def test_what_is_printed_agrees() -> None:
    """Wherever there is no doubt, one time over the other is the figure within a tenth."""
    import numpy as np

    random = np.random.default_rng(3)
    borne_out = 0
    for _ in range(300):
        noise = random.lognormal(0, random.choice([0.02, 0.1, 0.4]), (2, 7))
        found = compare(timed(*(20 * noise[0])), timed(*(10 * noise[1])))
        if found.doubt is None:
            borne_out += 1
            assert found.baseline_ms / found.candidate_ms == pytest.approx(found.median, rel=0.11)
            assert found.median == statistics.median(found.per_round)
    assert 100 < borne_out < 300


def look(own: float, busy: float, whole: float) -> cpu.Use:
    return cpu.Use(own, busy, whole)


@pytest.mark.parametrize(
    ("own", "busy", "whole", "share"),
    [
        (2.0, 2.0, 2.0, 0.0),  # alone
        (1.0, 1.1, 2.0, 0.0),  # one thread, and somebody small on a CPU that was idle
        (1.0, 2.0, 2.0, 0.5),  # two busy loops beside
        (0.2, 2.0, 2.0, 0.9),
        (2.1, 2.0, 2.0, 0.0),  # clocks that differ
        (0.0, 0.1, 0.1, None),  # too short a look
    ],
)
def test_what_others_took(own: float, busy: float, whole: float, share: float | None) -> None:
    found = cpu.others_share(look(5, 7, 11), look(5 + own, 7 + busy, 11 + whole))
    assert found == (None if share is None else pytest.approx(share))
    assert cpu.others_share(None, look(1, 1, 1)) is None


def test_reading_the_systems_times(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = tmp_path / "stat"
    monkeypatch.setattr(cpu, "_TIMES", times)
    monkeypatch.setattr(cpu.os, "sysconf", lambda _: 100, raising=False)
    times.write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 200 50 0 0 100 7 7\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
    )
    found = cpu.use([0])
    assert (found.busy, found.whole) == (2.5, 5.0)
    assert cpu.use([0, 7]) is None
    for text in ("", "cpu0 1 2", "cpu0 a b c d e f g h"):
        times.write_text(text)
        assert cpu.use([0]) is None
    times.unlink()
    assert cpu.use([0]) is None


def test_a_worker_tells_what_others_took_of_its_cpus() -> None:
    import time
    from functools import partial

    found = alternate({"a": WorkerSpec(partial, (time.sleep, 0.01))}, TimingOptions(2, 0.25, 0.0))["a"]
    assert all(0 <= share <= 1 for share in found.others) and len(found.others) in (0, 2)
