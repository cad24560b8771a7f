"""In place of a timing: one side was held up at every step, in all its calls alike, as others at the barriers of its threads do it.

No statistic of its own tells: its rounds are alike, its fastest call is as slow as the others, and the system tells nothing of CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engines.latency import Histogram, LatencyStats
from engines.timing import TimingOptions, WorkerResult, WorkerSpec

FACTOR = 2622  # between the two sides, as it was once printed
MS = 2.0  # of a call of the other side
FIGURES = ("2622×", "2622x", "2622.0", "2,622")  # how such a ratio would be printed


def timed(ms: float, rounds: int = 3, **fields: Any) -> WorkerResult:
    """A worker all of whose calls took the same."""
    seconds = [[ms / 1e3] * 3] * rounds
    return WorkerResult(
        LatencyStats.from_rounds(seconds),
        (ms,) * rounds,
        1,
        (0,),
        True,
        histogram=Histogram.from_seconds(seconds[0]),
        **fields,
    )


def alternate(*held_up: str) -> Callable[..., dict[str, WorkerResult]]:
    """Return what answers for `engines.timing.alternate`, with the sides of these names held up."""

    def answer(
        workers: Mapping[str, WorkerSpec], timing: TimingOptions, *_: Any, **__: Any
    ) -> dict[str, WorkerResult]:
        return {
            name: timed(MS * (FACTOR if name in held_up else 1), max(3, timing.rounds)) for name in workers
        }

    return answer
