"""The search against brute force on small models, where every schedule can be judged."""

import random

import pytest

from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.explore import LEVELS, LimitError, explore
from sit_deploy.search.schedule import Space
from sit_deploy.search.scored import Score, Scored, pareto_front

SPACE = Space(8, 49, (39, 31, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3))


def milliseconds(schedule):
    """As an engine takes: attention grows with the square of the tokens, and a TSM costs something."""
    blocks = sum(
        b * (0.05 + n * 0.004 + n * n * 2e-5)
        for b, n in zip(schedule.stage_blocks, schedule.kept, strict=True)
    )
    return blocks + 0.03 * (len(schedule.stage_blocks) - 1)


def loss(schedule):
    """What is lost where tokens go early and many at once."""
    total, block = 0.0, 0
    for blocks, before, after in zip(schedule.stage_blocks, schedule.kept, schedule.kept[1:], strict=False):
        block += blocks
        total += (before / after - 1) ** 1.3 * (9 - block) / 8 + 3 / after
    return total


def judge_with(noise):
    def judge(schedule, level):
        chance = random.Random(f"{schedule} {level}")
        return Score(loss(schedule) * (1 + noise[level] * chance.uniform(-1, 1)), 0.5, 8 << level)

    return judge


@pytest.mark.parametrize("limit", [0.85, 1.0, 1.2, 1.6])
def test_it_finds_what_brute_force_finds(limit):
    least, *others = sorted(loss(s) for s in SPACE.schedules() if milliseconds(s) <= limit)
    found = []
    for seed in range(5):
        judged = []

        def judge(schedule, level, judged=judged):
            judged.append(schedule)
            return Score(loss(schedule), 0.5, 8)

        tried = explore(SPACE, milliseconds, judge, limit, seed=seed)
        assert tried.finished
        assert milliseconds(tried.best[0]) <= limit
        assert len(judged) < 200 and (len(others) < 1000 or len(judged) < len(others) / 10)
        found.append(loss(tried.best[0]))
    assert sorted(found)[2] == least  # the very best of all, most often
    assert max(found) < 1.2 * least


def test_noise_of_few_images_does_not_decide():
    tried = explore(SPACE, milliseconds, judge_with((0.3, 0.1, 0.0)), 1.0, seed=1)
    within = sorted(loss(s) for s in SPACE.schedules() if milliseconds(s) <= 1.0)
    assert loss(tried.best[0]) <= within[len(within) // 100]
    assert [tried.all[s].images for s in tried.best] == [8 << (LEVELS - 1)] * len(tried.best)


def test_nothing_slower_than_the_limit_is_judged():
    seen = []

    def judge(schedule, level):
        seen.append(milliseconds(schedule))
        return Score(loss(schedule), 1.0, 8)

    explore(SPACE, milliseconds, judge, 1.0)
    assert max(seen) <= 1.0 < milliseconds(SPACE.unslimmed)


@pytest.mark.parametrize("allowed", [0, 1, 10, 60, 100])
def test_it_ends_when_the_time_is_used_up(allowed):
    left = iter(range(allowed))
    judged = []

    def judge(schedule, level):
        judged.append(schedule)
        return Score(loss(schedule), 1.0, 8 << level)

    tried = explore(SPACE, milliseconds, judge, 1.0, may_go_on=lambda: next(left, None) is not None)
    assert len(judged) == allowed + 1  # at least one is known, so that there is an answer
    assert not tried.finished and tried.best and tried.best[0] in tried.all


def test_a_limit_that_nothing_keeps_names_the_fastest():
    with pytest.raises(
        LimitError, match=r"no schedule takes 0\.01 ms: the fastest, 1x49-7x3, takes"
    ) as caught:
        explore(SPACE, milliseconds, judge_with((0, 0, 0)), 0.01)
    everything = SPACE.schedules()
    assert caught.value.ms == pytest.approx(min(map(milliseconds, everything)))
    assert milliseconds(caught.value.fastest) == caught.value.ms


def test_a_limit_that_all_keep_takes_the_slowest():
    tried = explore(SPACE, milliseconds, judge_with((0, 0, 0)), 1000.0)
    assert milliseconds(tried.best[0]) > 0.9 * max(map(milliseconds, SPACE.schedules()))


def test_few_schedules_are_all_judged():
    space = Space(2, 9, (4, 2))
    tried = explore(space, milliseconds, judge_with((0, 0, 0)), 1000.0)
    assert set(tried.all) == set(space.schedules())


def test_the_same_seed_tries_the_same():
    runs = [explore(SPACE, milliseconds, judge_with((0.2, 0.1, 0)), 1.0, seed=5) for _ in range(2)]
    assert runs[0] == runs[1]


def scored(ms, divergence, measured=None):
    one = Scored(Schedule((1, 1), (4, 2)), "fp32", ms, Score(divergence, 1.0, 8))
    return one if measured is None else one.timed(*measured)


def test_the_front_holds_what_nothing_beats():
    fast, slow, middle = scored(1, 0.9), scored(3, 0.1), scored(2, 0.5)
    beaten = scored(2.5, 0.6)
    assert pareto_front([slow, beaten, middle, fast]) == [fast, middle, slow]


def test_measured_figures_count_where_there_are_some():
    one = scored(1, 0.1, (5.0, Score(0.4, 0.9, 64)))
    assert (one.ms, one.divergence) == (5.0, 0.4)
    assert pareto_front([one, scored(2, 0.3)]) == [scored(2, 0.3)]
