"""How many times as fast one candidate is as another, and whether the rounds bear that out.

One estimator serves every figure that is printed: the median of the rounds' ratios, with its quartiles; the two times that
stand beside it are medians of the same rounds. On a machine that others use such a figure means nothing, however exact it
looks: then there is none, and the reason stands in its place. What a side is held against is known without the other: its own
fastest call, its CPUs' use, a loop of fixed work in the same slices, and the multiply-accumulates of both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from engines.errors import EngineError
from engines.latency import percentile
from engines.timing import WorkerResult

FEWEST_ROUNDS = 3  # that say something of their spread
WIDEST = 1.3  # times the lower quartile that the upper one may be
SLOWED = 3.0  # times its fastest call that a candidate's median may be: slower than that, it was held up
BUSY = 0.2  # share of the CPUs that others may take
# share of its usual rate that the loop of fixed work must have (`engines.pace`): alone it has 0.85 to 0.9 (2 CPUs, 2026-11-27), beside others
# that take two thirds of the CPUs 0.5 to 0.6, and it may lose a little to threads of a runtime that go on spinning
LEAST_PACE = 0.6
# times the one's multiply-accumulates a second over the other's: eager PyTorch was within 5.2 of the fastest INT8 engine of every
# model (benchmarks/results/runtime_peers.json); held up by others at the barriers between its threads, all its calls alike, 2622
IMPLAUSIBLE = 100.0
STOPPED = 20.0  # times the median that the 99th percentile may be: beyond that calls were stopped, by whoever it was
APART = 1.1  # times that the ratio of the medians may be off the median of the ratios
_TICKS = 20  # of the clock that a call must take


class Tail(Protocol):
    """Median and 99th percentile of calls, in milliseconds."""

    @property
    def p50_ms(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...


@dataclass(frozen=True)
class Speedup:
    """How many times as fast `candidate` is as `baseline`; below 1 it is slower.

    Attributes:
        median, low, high: of the rounds' ratios, with quartiles; None where it is not measurable.
        per_round: the ratios; none where it is not measurable.
        baseline_ms, candidate_ms: medians of the same rounds.
        doubt: why it is not known which of the two is faster, as part of a sentence; None where it is. Beside figures it says
            that the rounds lie on both sides of 1, which was measured.
        doubted_rounds: the ratios that say nothing, for whoever looks into why.
    """

    median: float | None
    low: float | None
    high: float | None
    per_round: tuple[float, ...]
    baseline_ms: float
    candidate_ms: float
    doubt: str | None = None
    doubted_rounds: tuple[float, ...] = ()

    @property
    def measurable(self) -> bool:
        """Whether there is a figure; a tie has one."""
        return self.median is not None

    @property
    def slower(self) -> bool:
        """Whether the rounds bear out that the candidate is no faster."""
        return self.doubt is None and self.median is not None and self.median <= 1

    def to_dict(self) -> dict[str, Any]:
        rounds = {"per_round": list(self.per_round), "doubted_rounds": list(self.doubted_rounds)}
        return {**asdict(self), **rounds}

    def doubted(self, doubt: str) -> Speedup:
        """Return that it is not measurable, and why."""
        rounds = self.per_round or self.doubted_rounds
        return Speedup(None, None, None, (), self.baseline_ms, self.candidate_ms, doubt, rounds)


def speedup(
    baseline: WorkerResult, candidate: WorkerResult, names: tuple[str, str], work: float = 1.0
) -> Speedup:
    """Compare two workers of one `alternate`.

    Args:
        baseline: what is compared with.
        candidate: what should be faster.
        names: of baseline and candidate, for the doubt.
        work: multiply-accumulates of a call of the baseline over those of the candidate's.

    Raises:
        EngineError: the two were not timed in the same rounds.
    """
    theirs, ours = baseline.round_medians_ms, candidate.round_medians_ms
    if not theirs or len(theirs) != len(ours):
        raise EngineError("only workers timed in the same rounds can be compared")
    times = {"baseline_ms": statistics.median(theirs), "candidate_ms": statistics.median(ours)}
    shortest = 1e3 * _TICKS * time.get_clock_info("perf_counter").resolution
    if not all(math.isfinite(ms) and ms > shortest for ms in (*theirs, *ours)):
        return Speedup(None, None, None, (), **times, doubt="a call is too short for this machine's clock")
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    doubts = [held_up(name, worker) for name, worker in zip(names, (baseline, candidate), strict=True)]
    doubt = next(filter(None, doubts), None) or _implausible(statistics.median(ratios) / work, names)
    measured = of_ratios(ratios, **times)
    return measured.doubted(doubt) if doubt else measured


def of_ratios(per_round: Sequence[float], baseline_ms: float, candidate_ms: float) -> Speedup:
    """Return what at least one round's ratio comes to, with the doubt that the ratios themselves raise."""
    ordered = sorted(per_round)
    low, high = percentile(ordered, 25), percentile(ordered, 75)
    measured = Speedup(
        statistics.median(ordered),
        low,
        high,
        tuple(per_round),
        baseline_ms=baseline_ms,
        candidate_ms=candidate_ms,
    )
    if doubt := _doubt(measured):
        return measured.doubted(doubt)
    if low < 1 < high:
        return replace(
            measured, doubt=f"the rounds lie on both sides of 1, half of them {_between(low, high)}"
        )
    return measured


def of_rounds(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """Return the median of the rounds' ratios of a clock that nobody on the CPUs can hold up, a GPU's.

    None without rounds, and where the rounds do not bear it out: others may use the GPU too.
    """
    ratios = [a / b for a, b in zip(theirs, ours, strict=False) if b > 0]
    if not ratios:
        return None
    return of_ratios(ratios, statistics.median(theirs), statistics.median(ours)).median


def held_up(name: str, timed: WorkerResult) -> str | None:
    """Say so, as part of a sentence, if others had the CPUs while a worker was timed; None where they had not."""
    if timed.others and statistics.median(timed.others) > BUSY:
        return f"other programs took {statistics.median(timed.others):.0%} of the CPUs while {name} was timed"
    slow = statistics.median(timed.round_medians_ms) / timed.stats.min_ms if timed.stats.min_ms > 0 else 1
    if slow > SLOWED:
        return f"{name} was held up: its median call took {slow:.1f} times as long as its fastest"
    if timed.pace and (pace := statistics.median(timed.pace)) < LEAST_PACE:
        return (
            f"{name} was held up: a loop of fixed work in the same slices ran at {pace:.0%} of its usual rate"
        )
    return None


def times_doubt(name: str, timed: WorkerResult) -> str | None:
    """Say why the times of a worker may mean little, or its slowest ones, as part of a sentence; None where nothing is known against them."""
    return held_up(name, timed) or tail_doubt(name, timed.stats)


def tail_doubt(name: str, stats: Tail) -> str | None:
    """Say so, as part of a sentence, where the slowest calls were stopped rather than slow: medians stand, and what is told of the tail does not."""
    times = stats.p99_ms / stats.p50_ms if stats.p50_ms > 0 else 1
    if times <= STOPPED:
        return None
    return f"the slowest calls of {name} took {times:.0f} times its median and more: something stopped them"


def _implausible(rate: float, names: tuple[str, str]) -> str | None:
    """Say so where one side did its multiply-accumulates at a small part of the other's rate."""
    if 1 / IMPLAUSIBLE <= rate <= IMPLAUSIBLE:
        return None
    slow, fast = names if rate > 1 else names[::-1]
    return (
        f"{slow} did its work at a {max(rate, 1 / rate):.0f}th of the rate of {fast}; "
        f"below a {IMPLAUSIBLE:.0f}th it was held up at every step"
    )


def _between(low: float, high: float) -> str:
    return f"between {low:.2f}× and {high:.2f}×"


def _doubt(measured: Speedup) -> str | None:
    """Say why the ratios themselves do not bear the figure out, or None."""
    if len(measured.per_round) < FEWEST_ROUNDS:
        rounds = "1 round says" if len(measured.per_round) == 1 else f"{len(measured.per_round)} rounds say"
        return f"{rounds} nothing of the spread; {FEWEST_ROUNDS} or more do"
    low, high = measured.low or 0.0, measured.high or 0.0
    if high > WIDEST * low:
        return f"half of the rounds lie {_between(low, high)}, the others beyond"
    apart = measured.baseline_ms / measured.candidate_ms / (measured.median or 1.0)
    if not 1 / APART <= apart <= APART:
        return f"the medians of the two are {apart * (measured.median or 1.0):.2f}× apart, the rounds {measured.median:.2f}×"
    return None
