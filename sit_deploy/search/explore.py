"""The search itself: what is predicted to be fast enough is tried on few images, and what does well there on more.

    all schedules → those just below the limit, by the latency table → a sample of every number of stages, on few images
    → the best of these on more, and what lies beside them, as long as that gets better → the best on all images

So that most of the time goes into schedules that are good: successive halving (Jamieson and Talwalkar, arXiv 1502.07943), then
local search. Schedules much faster than the limit give away tokens for nothing, and are not tried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.schedule import Space
from sit_deploy.search.scored import Score

_FIRST = 48  # schedules that are tried on few images
_SHARE = 3  # of those tried, one in so many goes on
_BEST = 4  # that the local search starts from, and that are tried on all images
_BAND = 0.04  # below the limit: where schedules are taken from first, as a share of it
_WIDEST = 0.5

Predict = Callable[[Schedule], float]
Judge = Callable[[Schedule, int], Score]  # by a schedule and a level: 0, 1, 2 for few images, more, all
LEVELS = 3


class LimitError(InputError):
    """No schedule is fast enough.

    Attributes:
        fastest: the schedule that is.
        ms: how long it takes.
    """

    def __init__(self, message: str, fastest: Schedule, ms: float) -> None:
        super().__init__(message)
        self.fastest, self.ms = fastest, ms


@dataclass(frozen=True)
class Tried:
    """What an exploration tried.

    Attributes:
        best: on all images, the best first.
        all: every schedule that was tried, with its score on the most images.
        finished: whether it came to its end; not where the time was used up.
    """

    best: list[Schedule]
    all: dict[Schedule, Score]
    finished: bool


def explore(
    space: Space,
    predict: Predict,
    judge: Judge,
    limit_ms: float,
    *,
    may_go_on: Callable[[], bool] = lambda: True,
    first: int = _FIRST,
    seed: int = 0,
) -> Tried:
    """Return the schedules within a limit whose models stay closest to the unslimmed one.

    Args:
        space: to choose from.
        predict: milliseconds of a schedule.
        judge: how close a schedule's model is, on as many images as a level (0 to `LEVELS` - 1) has.
        limit_ms: that schedules keep.
        may_go_on: asked before every judgement but the first; what was judged until it says no is compared.
        first: how many schedules are tried at the beginning.
        seed: of what is drawn.

    Raises:
        LimitError: none keeps the limit.
    """
    times = {schedule: predict(schedule) for schedule in space.schedules(seed)}
    fastest = min(times, key=times.__getitem__)
    if times[fastest] > limit_ms:
        raise LimitError(
            f"no schedule takes {limit_ms:g} ms: the fastest, {fastest.name}, takes {times[fastest]:.3g} ms",
            fastest,
            times[fastest],
        )
    walk = _Walk(judge, may_go_on)
    for schedule in _sample(times, limit_ms, first, seed):
        walk.judge(schedule, 0)
    for schedule in walk.ranked(0)[: max(_BEST, first // _SHARE)]:
        walk.judge(schedule, 1)
    _climb(walk, space, lambda schedule: _within(predict(schedule), limit_ms))
    for schedule in walk.ranked(1)[:_BEST]:
        walk.judge(schedule, 2)
    level = next(level for level in reversed(range(LEVELS)) if walk.ranked(level))
    return Tried(walk.ranked(level), walk.latest(), not walk.stopped)


class _Walk:
    """Scores by level. Only those of one level are compared: more images are other images."""

    def __init__(self, judge: Judge, may_go_on: Callable[[], bool]) -> None:
        self._judge, self._may_go_on = judge, may_go_on
        self._scores: list[dict[Schedule, Score]] = [{} for _ in range(LEVELS)]
        self.stopped = False

    def judge(self, schedule: Schedule, level: int) -> Score | None:
        """Return a schedule's score, judged now if it was not before; None where there is no time for it."""
        known = self._scores[level]
        if schedule in known:
            return known[schedule]
        begun = any(self._scores)
        self.stopped = self.stopped or (begun and not self._may_go_on())
        if self.stopped:
            return None
        known[schedule] = self._judge(schedule, level)
        return known[schedule]

    def ranked(self, level: int) -> list[Schedule]:
        """Return what was judged on a level, the best first."""
        known = self._scores[level]
        return sorted(known, key=lambda schedule: (known[schedule].divergence, schedule))

    def latest(self) -> dict[Schedule, Score]:
        """Return each schedule's score on the most images."""
        return {schedule: score for level in self._scores for schedule, score in level.items()}


def _climb(walk: _Walk, space: Space, within: Callable[[Schedule], bool]) -> None:
    """Judge what lies beside the best few, until nothing beside them is better."""
    visited: set[Schedule] = set()
    while not walk.stopped:
        todo = [schedule for schedule in walk.ranked(1)[:_BEST] if schedule not in visited]
        if not todo:
            return
        visited.add(todo[0])
        beside = [schedule for schedule in space.neighbours(todo[0]) if within(schedule)]
        for schedule in beside:
            walk.judge(schedule, 0)
        # few images say which are worth more of them
        known = set(beside)
        for schedule in [s for s in walk.ranked(0) if s in known][:_BEST]:
            walk.judge(schedule, 1)


def _within(ms: float, limit_ms: float) -> bool:
    return (1 - 2 * _BAND) * limit_ms <= ms <= limit_ms


def _sample(times: dict[Schedule, float], limit_ms: float, count: int, seed: int) -> Sequence[Schedule]:
    """Draw schedules just below a limit, about as many of each number of stages."""
    chance = random.Random(seed)
    band = _BAND
    while band < _WIDEST:
        if sum((1 - band) * limit_ms <= ms <= limit_ms for ms in times.values()) >= count:
            break
        band *= 2
    near = [schedule for schedule, ms in times.items() if (1 - band) * limit_ms <= ms <= limit_ms]
    if not near:  # all are far faster: the slowest lose least
        near = sorted(times, key=times.__getitem__)[-count:]
        near = [schedule for schedule in near if times[schedule] <= limit_ms]
    groups = _by_length(near)
    for group in groups:
        chance.shuffle(group)
    drawn: list[Schedule] = []
    while len(drawn) < count and any(groups):
        drawn += [group.pop() for group in groups if group]
    return drawn[:count]


def _by_length(schedules: Iterable[Schedule]) -> list[list[Schedule]]:
    groups: dict[int, list[Schedule]] = {}
    for schedule in schedules:
        groups.setdefault(len(schedule.stage_blocks), []).append(schedule)
    return [groups[length] for length in sorted(groups)]
