"""How fast a CPU does work that is always the same: what a timing is held against, whatever is timed.

Calls that are all held up look like a slow program: no statistic of them tells. A loop of arithmetic, run beside them in the same
slice, is slow then too, and how fast it goes where nobody disturbs it is known from its own fastest lap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_TERMS = (
    8_000  # of a lap: about 0.1 ms, much shorter than a scheduler's turn, so that one lap is seldom disturbed
)
_SHARE = 0.05  # of a slice, for laps beside it
_SHORTEST, _LONGEST = 0.005, 0.05  # seconds of laps


@dataclass(frozen=True)
class Pace:
    """Laps of a loop of fixed work.

    Attributes:
        laps: how many.
        seconds: that all of them took.
        fastest: seconds of the fastest.
    """

    laps: int
    seconds: float
    fastest: float

    def of(self, fastest: float) -> float:
        """Return the rate as a share, 0 to 1, of that of a lap of `fastest` seconds."""
        return min(1.0, self.laps * fastest / self.seconds) if self.seconds > 0 else 1.0


def run(seconds: float, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Run laps beside a slice of `seconds`, for a small part of its length."""
    return of_laps(_laps(min(max(_SHARE * seconds, _SHORTEST), _LONGEST), clock))


def of_laps(laps: Iterable[float]) -> Pace:
    """Return what laps of so many seconds come to; one at least."""
    taken = tuple(laps)
    return Pace(len(taken), sum(taken), min(taken))


def _laps(seconds: float, clock: Callable[[], float]) -> Iterable[float]:
    start = before = clock()
    while True:
        sum(range(_TERMS))
        after = clock()
        yield after - before
        if after - start >= seconds:
            return
        before = after
