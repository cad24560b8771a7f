"""What is told of parts from whole schedules: exact where costs add up, honest where they do not."""

from __future__ import annotations

import itertools
import random

import pytest

from sit_deploy.errors import InputError
from sit_deploy.latency.parts import PartTimes, Widths
from sit_deploy.latency.probes import NOISE, candidates, next_probes, reference_schedule
from sit_deploy.latency.schedule import Schedule, random_schedule

WIDTHS = Widths(depth=16, patches=196, prefix=1, dim=384, hidden=1152)


def block(tokens: int) -> float:
    return 0.7 + 0.0095 * tokens + 2e-5 * tokens**2


def cost(schedule: Schedule) -> float:
    """A machine on which parts add up: its stem and head, its blocks, its TSMs, its last block."""
    stages = list(zip(schedule.stage_blocks, schedule.kept, strict=True))
    blocks = sum(count * block(kept) for count, kept in stages) - block(schedule.kept[-1])
    slimming = sum(0.05 + 0.0012 * a + 6e-6 * a * b for a, b in itertools.pairwise(schedule.kept))
    return 2.0 + blocks + slimming + 0.4 + 0.0013 * schedule.kept[-1]


def measured(count: int, noise: float = 1e-4, seed: int | None = None) -> tuple[list, list, list]:
    """What the best few schedules take, off by `noise` at random if there is a seed."""
    rng = random.Random(seed)
    timed = [reference_schedule(WIDTHS)]
    times = [cost(timed[0])]
    for one in itertools.islice(next_probes(WIDTHS, timed, times, [noise], candidates(WIDTHS)), count):
        timed.append(one)
        times.append(cost(one) * (1 + rng.gauss(0, noise) * (seed is not None)))
    return timed, times, [noise] * len(timed)


def others(count: int = 100, stages: int = 5) -> list[Schedule]:
    rng = random.Random(77)
    return [random_schedule(rng, 16, 196, rng.randint(1, stages)) for _ in range(count)]


def test_costs_that_add_up_are_recovered_exactly() -> None:
    known = PartTimes(WIDTHS, *measured(16))
    for schedule in others():
        assert known.predict(schedule)[0] == pytest.approx(cost(schedule), rel=1e-3)


def test_the_parts_of_a_schedule_are_told_apart() -> None:
    known = PartTimes(WIDTHS, *measured(20))
    schedule = Schedule((6, 5, 5), (196, 96, 32))
    parts = {part.name: part.ms for part in known.split(schedule)}
    assert list(parts) == ["stem and head", "stage 1", "slimming 1", "stage 2", "slimming 2", "stage 3"]
    assert sum(parts.values()) == pytest.approx(known.predict(schedule)[0])
    # what stem and blocks have in common cannot be told apart, as all schedules have as many blocks; what blocks differ by can
    assert parts["stage 1"] / 6 - parts["stage 2"] / 5 == pytest.approx(block(196) - block(96), rel=0.02)


def test_error_bars_hold_what_noise_does() -> None:
    known = PartTimes(WIDTHS, *measured(20, noise=0.015, seed=3))
    found = [(known.predict(one), cost(one)) for one in others()]
    assert sum(abs(ms - true) <= 2 * deviation for (ms, deviation), true in found) >= 85
    assert all(abs(ms - true) <= 0.04 * true for (ms, _), true in found)
    assert all(0.002 * true < deviation < 0.04 * true for (_, deviation), true in found)


def test_more_measurements_leave_less_unknown() -> None:
    few, many = (PartTimes(WIDTHS, *measured(count, noise=0.01)) for count in (4, 20))
    schedule = Schedule((2, 7, 7), (196, 150, 61))
    assert many.predict(schedule)[1] < 0.7 * few.predict(schedule)[1]


def test_a_token_count_by_itself_may_be_off() -> None:
    """Kernels work in tiles: a count that was measured itself is known better than its neighbours."""
    timed, times, noise = measured(16, noise=0.002)
    at = Schedule((1, 15), (196, 77))
    known = PartTimes(WIDTHS, [*timed, at], [*times, 1.03 * cost(at)], [*noise, 0.002])
    near = Schedule((1, 15), (196, 79))
    assert known.predict(at)[0] == pytest.approx(1.03 * cost(at), rel=0.006)
    assert known.predict(near)[0] < 1.02 * cost(near)
    assert known.predict(at)[1] < known.predict(near)[1]


def test_what_is_timed_next_tells_of_what_is_wanted() -> None:
    timed, times, noise = measured(6, noise=0.01)
    wanted = [Schedule((8, 8), (196, count)) for count in (140, 142, 144)]
    pool = [*wanted, *candidates(WIDTHS)]
    chosen = list(itertools.islice(next_probes(WIDTHS, timed, times, noise, pool, wanted), 3))
    before = PartTimes(WIDTHS, timed, times, noise)
    after = PartTimes(WIDTHS, timed + chosen, times + [cost(one) for one in chosen], noise + [NOISE] * 3)
    usual = list(itertools.islice(next_probes(WIDTHS, timed, times, noise, pool), 3))
    less = PartTimes(WIDTHS, timed + usual, times + [cost(one) for one in usual], noise + [NOISE] * 3)
    known, more, most = (sum(one.predict(each)[1] for each in wanted) for one in (before, less, after))
    assert most < more < known


def test_schedules_to_time_are_the_models_own_and_each_but_once() -> None:
    for widths in (WIDTHS, Widths(8, 49, 1, 128, 384), Widths(3, 4, 1, 32, 64), Widths(1, 16, 1, 32, 64)):
        timed = [reference_schedule(widths)]
        order = list(next_probes(widths, timed, [1.0], [NOISE], candidates(widths)[:40]))
        assert len(set(order)) == len(order) and timed[0] not in order
        for one in (*timed, *order):
            Schedule.checked(widths.depth, widths.patches, one.stage_blocks, one.kept)


@pytest.mark.parametrize(
    ("blocks", "kept", "says"),
    [
        ((8, 7), (196, 98), "add up to 15 blocks, and the model has 16"),
        ((8, 8), (196, 0), "every stage must"),
        ((4, 4, 8), (196, 50, 60), "grows"),
        ((8, 8), (100, 50), "does not fit the 196 patches"),
        ((8, 8), (196,), "does not fit"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(
    blocks: tuple[int, ...], kept: tuple[int, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Schedule.checked(16, 196, blocks, kept)
