"""Which schedule to time next: the one that tells most of all the others."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from sit_deploy.latency.parts import PartTimes, Widths
from sit_deploy.latency.schedule import Schedule, halving_schedule, random_schedule

STAGES = 4  # of what is timed, at most: parts add up the same way in any number of them
_DRAWN = 300  # schedules that are chosen among, and that the choice is judged on
NOISE = 0.01  # share of a time that a measurement is off where the machine is quiet


def reference_schedule(widths: Widths) -> Schedule:
    """Return the schedule that all others are timed against: tokens halve three times, blocks are even."""
    return halving_schedule(widths.depth, widths.patches, min(STAGES, widths.depth))


def candidates(widths: Widths) -> list[Schedule]:
    """Return schedules that may be timed, always the same ones: a model that slims nothing, and many at random."""
    rng, most = random.Random(0), min(STAGES, widths.depth)
    drawn = [Schedule((widths.depth,), (widths.patches,))]
    for _ in range(_DRAWN if most > 1 else 0):
        drawn.append(random_schedule(rng, widths.depth, widths.patches, rng.randint(2, most)))
    return list(dict.fromkeys(drawn))


def next_probes(
    widths: Widths,
    timed: Sequence[Schedule],
    times: Sequence[float],
    noise: Sequence[float],
    pool: Sequence[Schedule],
    wanted: Sequence[Schedule] = (),
) -> Iterator[Schedule]:
    """Yield the schedules of a pool in the order in which they are best timed, those left out that have been.

    What a measurement will tell does not depend on what it says, so the order is known beforehand, but for the pace of the engine.

    Args:
        widths: of the model.
        timed: schedules that have been timed; one at least.
        times: of each.
        noise: of each, the share of its time that it may be off.
        pool: schedules that may be timed.
        wanted: those whose times matter; those of the pool if there are none.
    """
    timed, times, noise = list(timed), list(times), list(noise)
    left = [one for one in pool if one not in timed]
    while left:
        known = PartTimes(widths, timed, times, noise)
        best = left[int(np.argmax(known.informed(left, wanted or pool, NOISE)))]
        yield best
        left.remove(best)
        timed.append(best)
        times.append(known.predict(best)[0])
        noise.append(NOISE)
