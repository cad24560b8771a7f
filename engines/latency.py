"""Statistics of repeated calls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.errors import EngineError


@dataclass(frozen=True)
class LatencyStats:
    """Latency of one call in milliseconds; images/s is batch size over the median."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    iterations: int
    images_per_second: float

    @classmethod
    def from_seconds(cls, samples: Sequence[float], batch_size: int = 1) -> LatencyStats:
        """Summarise the seconds each call took.

        Raises:
            EngineError: no samples, or a batch size below 1.
        """
        if not samples:
            raise EngineError("no latency samples; time at least one call")
        if batch_size < 1:
            raise EngineError(f"batch size must be at least 1, got {batch_size}")
        ordered = sorted(samples)
        mean = statistics.fmean(ordered)
        return cls(
            p50_ms=1e3 * percentile(ordered, 50),
            p90_ms=1e3 * percentile(ordered, 90),
            p99_ms=1e3 * percentile(ordered, 99),
            mean_ms=1e3 * mean,
            min_ms=1e3 * ordered[0],
            iterations=len(ordered),
            images_per_second=_rate(batch_size, 1e3 * percentile(ordered, 50)),
        )

    @classmethod
    def from_rounds(cls, rounds: Sequence[Sequence[float]], batch_size: int = 1) -> LatencyStats:
        """Summarise the seconds of each call of each round.

        The median is that of the rounds' medians: a round in which the machine was held up then counts once, as it does in a
        comparison of two candidates (`engines.speedup`).

        Raises:
            EngineError: no samples, or a batch size below 1.
        """
        pooled = cls.from_seconds([second for calls in rounds for second in calls], batch_size)
        p50 = 1e3 * statistics.median(statistics.median(calls) for calls in rounds)
        return replace(
            pooled,
            p50_ms=p50,
            p90_ms=max(p50, pooled.p90_ms),
            p99_ms=max(p50, pooled.p99_ms),
            images_per_second=_rate(batch_size, p50),
        )


def _rate(batch_size: int, ms: float) -> float:
    return 1e3 * batch_size / ms if ms > 0 else math.inf


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of values in ascending order, linear between neighbours as in numpy."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class Histogram:
    """How often calls took how long: `counts[i]` of them between `edges_ms[i]` and the next; the last also what is beyond."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_seconds(cls, samples: Sequence[float], bins: int = 40) -> Histogram:
        """Count the seconds each call took in bins of one width, from the fastest to the 99th percentile.

        Raises:
            EngineError: no samples.
        """
        if not samples:
            raise EngineError("no latency samples; time at least one call")
        ordered = sorted(1e3 * second for second in samples)
        low, high = ordered[0], percentile(ordered, 99)
        width = (high - low) / bins or 1e-3
        counts = [0] * bins
        for ms in ordered:
            counts[min(int((ms - low) / width), bins - 1)] += 1
        return cls(tuple(low + i * width for i in range(bins + 1)), tuple(counts))
