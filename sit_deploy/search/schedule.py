"""Token schedules: all that a model may have, and those that lie beside one."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule, halving_schedule

MOST_STAGES = (
    4  # as in the paper; a further stage gains little, and the number of schedules grows tenfold with each
)
_COUNTS = 12  # token counts that a stage may keep
_LISTED = 20_000  # schedules that are listed one by one; of more, so many are drawn


@dataclass(frozen=True)
class Space:
    """The schedules that a model may have.

    Attributes:
        depth: blocks of the model.
        patches: tokens of its first stage.
        counts: what a further stage may keep, the most first; each stage keeps fewer than the one before.
        most_stages: of a schedule.
    """

    depth: int
    patches: int
    counts: tuple[int, ...]
    most_stages: int = MOST_STAGES

    def __post_init__(self) -> None:
        falling = all(after < before for before, after in itertools.pairwise((self.patches, *self.counts)))
        if not self.counts or not falling or self.counts[-1] < 1:
            raise InputError(
                f"stages of {self.patches} patches cannot keep {','.join(map(str, self.counts)) or 'nothing'}; give fewer each time, "
                "and at least one"
            )

    @classmethod
    def of(cls, depth: int, patches: int, most_stages: int = MOST_STAGES) -> Space:
        """Return the schedules of a model, with the token counts of `usual_counts`."""
        return cls(depth, patches, usual_counts(patches), most_stages)

    @property
    def unslimmed(self) -> Schedule:
        """The schedule of the model as it is."""
        return Schedule((self.depth,), (self.patches,))

    @property
    def middle(self) -> Schedule:
        """A schedule of as many stages as may be, of even blocks, whose tokens halve each time."""
        return halving_schedule(self.depth, self.patches, max(self._lengths, default=1))

    @property
    def size(self) -> int:
        """How many schedules slim."""
        return sum(self._size(stages) for stages in self._lengths)

    @lru_cache(maxsize=4)  # noqa: B019  (of a few spaces: a search lists its own for every limit)
    def schedules(self, seed: int = 0) -> tuple[Schedule, ...]:
        """Return all that slim; of very many, a part that is drawn, with as many of each number of stages as may be."""
        if self.size <= _LISTED:
            return tuple(schedule for stages in self._lengths for schedule in self._all(stages))
        chance = random.Random(seed)
        drawn: list[Schedule] = []
        lengths = list(self._lengths)
        for i, stages in enumerate(lengths):  # the few of two stages leave their share to those of more
            share = (_LISTED - len(drawn)) // (len(lengths) - i)
            if self._size(stages) <= share:
                drawn += self._all(stages)
                continue
            chosen: dict[Schedule, None] = {}
            while len(chosen) < share:
                cuts = sorted(chance.sample(range(1, self.depth), stages - 1))
                kept = sorted(chance.sample(self.counts, stages - 1), reverse=True)
                chosen[self._schedule(tuple(cuts), tuple(kept))] = None
            drawn += chosen
        return tuple(drawn)

    def neighbours(self, schedule: Schedule) -> list[Schedule]:
        """Return what differs from a schedule in one place: a stage begins a block sooner or later, keeps the next count, is split or gone."""
        cuts = tuple(itertools.accumulate(schedule.stage_blocks[:-1]))
        kept = schedule.kept[1:]
        found: dict[Schedule, None] = {}

        def add(cuts: tuple[int, ...], kept: tuple[int, ...]) -> None:
            rising = all(0 < a < b for a, b in itertools.pairwise((*cuts, self.depth))) and (
                not cuts or cuts[0] > 0
            )
            falling = all(a > b for a, b in itertools.pairwise((self.patches, *kept)))
            if cuts and rising and falling and len(cuts) < self.most_stages:
                found[self._schedule(cuts, kept)] = None

        for i in range(len(cuts)):
            for by in (-1, 1):
                add((*cuts[:i], cuts[i] + by, *cuts[i + 1 :]), kept)
            for count in self._beside(kept[i]):
                add(cuts, (*kept[:i], count, *kept[i + 1 :]))
            # a block sooner and a count more cost about the same, and so do not meet on the way of single steps below a limit
            for by, count in itertools.product((-1, 1), self._beside(kept[i])):
                add((*cuts[:i], cuts[i] + by, *cuts[i + 1 :]), (*kept[:i], count, *kept[i + 1 :]))
            add(cuts[:i] + cuts[i + 1 :], kept[:i] + kept[i + 1 :])
        for cut, count in itertools.product(range(1, self.depth), self.counts):
            if cut not in cuts:
                place = sum(other < cut for other in cuts)
                add((*cuts[:place], cut, *cuts[place:]), (*kept[:place], count, *kept[place:]))
        found.pop(schedule, None)
        return list(found)

    @property
    def _lengths(self) -> range:
        return range(2, min(self.most_stages, self.depth, len(self.counts) + 1) + 1)

    def _size(self, stages: int) -> int:
        return math.comb(self.depth - 1, stages - 1) * math.comb(len(self.counts), stages - 1)

    def _all(self, stages: int) -> Iterator[Schedule]:
        for cuts in itertools.combinations(range(1, self.depth), stages - 1):
            for kept in itertools.combinations(self.counts, stages - 1):
                yield self._schedule(cuts, kept)

    def _schedule(self, cuts: tuple[int, ...], kept: tuple[int, ...]) -> Schedule:
        ends = (0, *cuts, self.depth)
        return Schedule(tuple(b - a for a, b in itertools.pairwise(ends)), (self.patches, *kept))

    def _beside(self, count: int) -> list[int]:
        """Return the next counts above and below one, which need not be of `counts` itself."""
        above = [other for other in self.counts if other > count][-1:]
        return above + [other for other in self.counts if other < count][:1]


def usual_counts(patches: int) -> tuple[int, ...]:
    """Return token counts that a stage may keep, the most first: shares of `patches` that fall by a fifth each time, with its halves.

    With the class token that goes beside them, halves of 196 are not multiples of anything: which counts an engine likes, the
    latency table measures.
    """
    if patches < 2:
        raise InputError(f"a model of {patches} patches has nothing to slim; take a larger image")
    falling = {round(patches * 0.8**i) for i in range(1, _COUNTS + 1)}
    halves = {patches >> i for i in range(1, 5)}
    return tuple(sorted((n for n in falling | halves if 1 <= n < patches), reverse=True))
