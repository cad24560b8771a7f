"""The search for plans worth having: what is tried, in which order, until the seconds are used up.

The float engines and the default groups come first, then each other group beside these and these without each of their own: a
group is judged in the company that it will have, since one alone would pay for conversions that its neighbours share. From what
each gains in time for the error that it adds, an order follows, and its beginnings are measured as plans of their own, the longest
first: a greedy walk along the front of time against error. What misses the limit is tried with a finer rest too.
"""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sit_deploy.tune.measured import FLOAT, Candidate, LogitsError, Measured, Timing, most_are_noise

GAIN = 0.005  # of the float32 engine's time that a group has to save to be thought of
_ATTEMPTS = 2  # at a time that says nothing
_PATIENCE = 0.25  # share of the seconds that the first plan may wait for a quiet moment
_SINGLES = 0.6  # share of the seconds after which no further group is tried by itself
_SLOWER = 1.1  # times as slow as what holds: where the walk may end
_FIRST = 3  # timings after which a machine that tells nothing is given up


@dataclass(frozen=True)
class Space:
    """What there is to choose from.

    Attributes:
        groups: that the model has, in order.
        default: those of them that are in 8 bits by default.
        rests: what may be beside 8 bits; the finest first.
        floats: precisions of the float engines; FLOAT is one.
        small: groups with so little of the work that they are tried last.
    """

    groups: tuple[str, ...]
    default: frozenset[str]
    rests: tuple[str, ...]
    floats: tuple[str, ...] = (FLOAT,)
    small: frozenset[str] = frozenset()

    @property
    def usual(self) -> Candidate:
        """The plan that is built where nothing is tuned."""
        return Candidate(self.default, self.rests[0])

    def named(self, candidate: Candidate) -> tuple[str, ...]:
        """Return a plan as --quantize takes it."""
        whole, inside = candidate.groups >= self.default, candidate.groups
        groups = ("default", *sorted(inside - self.default)) if whole else tuple(sorted(inside))
        return (*groups, *(f"-{name}" for name in sorted(candidate.high)))

    def offers(self, candidate: Candidate) -> bool:
        """Whether a candidate may be built: one of an earlier tuning, with another choice, need not."""
        rests = self.floats if candidate.is_float else self.rests
        return candidate.rest in rests and candidate.groups <= set(self.groups)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        measured: in the order of measuring.
        finished: whether all was tried that was thought of; else the seconds were used up, or the machine told nothing.
        seconds: that it took.
    """

    measured: tuple[Measured, ...]
    finished: bool
    seconds: float

    def of(self, candidate: Candidate) -> Measured | None:
        """Return what was measured of a candidate, None where nothing was."""
        return next((one for one in self.measured if one.candidate == candidate), None)


class _StopSearchError(Exception):
    """The seconds are used up, or the machine tells nothing."""


class Meter:
    """Measures candidates, each once, as long as there are seconds for it.

    Args:
        time: how fast a candidate is; None where the engine cannot be built of it.
        error: how far its logits are off.
        seconds: after which nothing more is begun.
        clock: that tells seconds; it may be a test's own.
        done: called after each, with all that was measured: to keep it, and to show how far it is.
    """

    def __init__(
        self,
        time: Callable[[Candidate], Timing | None],
        error: Callable[[Candidate], LogitsError],
        seconds: float,
        clock: Callable[[], float] = _time.monotonic,
        done: Callable[[Iterable[Measured]], None] = lambda _: None,
    ) -> None:
        self._time, self._error, self._clock, self._done = time, error, clock, done
        self._started, self._seconds = clock(), seconds
        self._all: dict[Candidate, Measured | None] = {}
        #: whether a part of the search was left out for want of seconds
        self.cut_short = False

    @property
    def measured(self) -> tuple[Measured, ...]:
        """All that was measured, in order."""
        return tuple(one for one in self._all.values() if one is not None)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def share(self) -> float:
        """Share of the seconds that is used up."""
        return self.spent / self._seconds

    def renew(self, candidate: Candidate, measured: Measured | None) -> None:
        """Take new measures of a candidate in place of those that it has; None where it cannot be built any more."""
        self._all[candidate] = measured

    def measure(
        self, candidate: Candidate, faster_than: Measured | None = None, patience: float = 0.0
    ) -> Measured | None:
        """Return a candidate's measures; None where it cannot be built.

        Args:
            candidate: what to measure.
            faster_than: the error is left out unless it gains on this one's time.
            patience: share of the seconds up to which a time that says nothing is taken again, and again.

        Raises:
            _StopSearchError: no seconds are left.
        """
        if candidate not in self._all:
            if self.share >= 1:
                raise _StopSearchError
            timing, attempts = self._time(candidate), 1
            while timing is not None and not timing.usable and self.share < 1:
                if attempts >= _ATTEMPTS and self.share >= patience:
                    break
                timing, attempts = self._time(candidate), attempts + 1
            self._all[candidate] = timing and Measured(candidate, timing)
            if len(self.measured) == _FIRST and not any(one.timing.usable for one in self.measured):
                raise _StopSearchError
        one = self._all[candidate]
        wanted = one is not None and (faster_than is None or faster_than.cost - one.cost >= GAIN)
        if wanted and one.error is None and one.timing.usable:
            one = self._all[candidate] = replace(one, error=self._error(candidate))
        self._done(self.measured)
        return one


def search(space: Space, meter: Meter, least_db: Callable[[Measured], float] | None = None) -> Found:
    """Measure what is worth measuring.

    Args:
        space: what there is to choose from.
        meter: measures it, and ends the search when the seconds are used up.
        least_db: the SQNR that is asked for, given the measures of the usual plan; None where accuracy decides. It says alone
            which plans are tried with a finer rest, and where the walk ends.
    """
    try:
        _search(space, meter, least_db)
        finished = not meter.cut_short
    except _StopSearchError:
        finished = False
    return Found(meter.measured, finished, meter.spent)


def _search(space: Space, meter: Meter, least_db: Callable[[Measured], float] | None) -> None:
    usual = meter.measure(space.usual, patience=_PATIENCE)
    bases = [usual, *(meter.measure(Candidate(space.default, rest)) for rest in space.rests[1:])]
    for precision in space.floats:
        meter.measure(Candidate(rest=precision))
    told = [base for base in bases if base is not None and base.usable]
    if not told:
        return
    base = min(told, key=lambda one: one.cost)
    order = _order(space, meter, base)
    if most_are_noise(meter.measured):
        return
    least = least_db(usual) if least_db and usual is not None and usual.usable else None
    rest = base.candidate.rest
    finer = space.rests[: space.rests.index(rest)]
    kept: list[float] = []  # times of those that hold
    for count in range(len(order), 0, -1):
        candidate = Candidate(frozenset(order[:count]), rest)
        one = meter.measure(candidate)
        if one is not None and one.timing.usable and kept and one.cost > _SLOWER * min(kept):
            return  # from here on each is slower than the one before
        if _holds(one, least):
            kept.append(one.cost)
            continue  # what holds in this rest is no faster in a finer one
        for with_ in reversed(finer):
            one = meter.measure(replace(candidate, rest=with_))
            if _holds(one, least):
                kept.append(one.cost)


def _holds(one: Measured | None, least_db: float | None) -> bool:
    """Whether it is known that one keeps what is asked for."""
    return one is not None and one.usable and least_db is not None and one.error.sqnr_db >= least_db


def _order(space: Space, meter: Meter, base: Measured) -> list[str]:
    """Return the groups that gain time in 8 bits, those that gain most for their error first.

    Those of the default groups that there were no seconds to try without come first of all, others that were not tried not at all.
    """
    worth: dict[str, float] = dict.fromkeys(space.default, float("inf"))
    new = [group for group in space.groups if group not in space.default]
    large = [group for group in new if group not in space.small]
    usual = [group for group in space.groups if group in space.default]
    for group in (*large, *usual, *(group for group in new if group in space.small)):
        if meter.share >= _SINGLES:
            meter.cut_short = True
            break
        inside = group in space.default
        groups = base.candidate.groups - {group} if inside else base.candidate.groups | {group}
        if not groups:
            continue
        other = meter.measure(replace(base.candidate, groups=groups), None if inside else base)
        if other is None or not other.timing.usable:
            continue
        gain = other.cost - base.cost if inside else base.cost - other.cost
        if gain < GAIN or other.error is None:
            worth.pop(group, None)
            continue
        added = base.error.power - other.error.power if inside else other.error.power - base.error.power
        worth[group] = gain / added if added > 0 else float("inf")
    return sorted(worth, key=lambda group: (-worth[group], space.groups.index(group)))


def refine(
    meter: Meter,
    fast: Measured,
    kept: Measured | None,
    order: list[str],
    keeps: Callable[[Measured], bool],
    worth_it: Callable[[Candidate], bool] = lambda _: True,
) -> Measured | None:
    """Find the fastest that holds between a plan that missed the limit and one that keeps it, taking single layers back.

    That fewer layers in 8 bits are more accurate is an assumption; what is returned was measured in any case.

    Args:
        meter: measures.
        fast: missed the limit.
        kept: keeps it; None where none does.
        order: layers of `fast` that may go back, those that should go first, first.
        keeps: whether one keeps the limit.
        worth_it: whether enough is left in 8 bits to try it.

    Returns:
        The best found; None where none keeps the limit, or none is faster than `kept`.
    """
    best: Measured | None = None
    low, high = 1, len(order) - 1
    try:
        while low <= high:
            count = (low + high) // 2
            candidate = replace(fast.candidate, high=(*fast.candidate.high, *order[:count]))
            one = meter.measure(candidate) if worth_it(candidate) else None
            if one is None or not one.timing.usable or (kept is not None and one.cost >= kept.cost):
                high = count - 1  # so many gain nothing
            elif one.usable and keeps(one):
                best, high = one, count - 1
            else:
                low = count + 1
    except _StopSearchError:
        pass
    return best
