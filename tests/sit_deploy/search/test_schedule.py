"""Schedules: counted by brute force, and all reached by single steps."""

import itertools

import pytest

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.schedule import Space, usual_counts


def brute_force(space):
    found = set()
    for stages in range(2, space.most_stages + 1):
        for blocks in itertools.product(range(1, space.depth + 1), repeat=stages):
            if sum(blocks) != space.depth:
                continue
            for kept in itertools.product(space.counts, repeat=stages - 1):
                if all(a > b for a, b in itertools.pairwise((space.patches, *kept))):
                    found.add(Schedule(blocks, (space.patches, *kept)))
    return found


@pytest.mark.parametrize(
    ("depth", "counts", "most"), [(5, (12, 8, 4, 2), 4), (3, (8, 2), 4), (4, (1,), 3), (2, (9, 3), 4)]
)
def test_all_schedules_are_listed_once(depth, counts, most):
    space = Space(depth, 16, counts, most)
    listed = space.schedules()
    assert len(listed) == len(set(listed)) == space.size
    assert set(listed) == brute_force(space)


def test_of_very_many_a_part_is_drawn_that_the_seed_fixes():
    space = Space.of(16, 196)
    assert space.size > 100_000
    drawn = space.schedules(3)
    assert len(drawn) == len(set(drawn)) == 20_000
    assert drawn == space.schedules(3) and drawn != space.schedules(4)
    lengths = [len(one.stage_blocks) for one in drawn]
    assert lengths.count(2) == 15 * len(space.counts)
    assert min(lengths.count(3), lengths.count(4)) > 6_000
    for one in drawn:
        assert (
            sum(one.stage_blocks) == 16
            and min(one.stage_blocks) > 0
            and len(one.stage_blocks) == len(one.kept)
        )
        assert one.kept[0] == 196 and all(a > b for a, b in itertools.pairwise(one.kept))


def test_steps_lead_from_any_schedule_to_any_other():
    space = Space(5, 16, (12, 8, 4, 2), 4)
    everything = set(space.schedules())
    reached, todo = set(), [Schedule((1, 4), (16, 12))]
    while todo:
        one = todo.pop()
        if one not in reached:
            reached.add(one)
            beside = space.neighbours(one)
            assert one not in beside and len(set(beside)) == len(beside)
            assert set(beside) <= everything
            todo += beside
    assert reached == everything


def test_a_schedule_of_other_counts_has_neighbours():
    space = Space(8, 49, (40, 30, 20, 10))
    beside = space.neighbours(Schedule((2, 2, 4), (49, 24, 12)))
    assert Schedule((2, 2, 4), (49, 30, 12)) in beside and Schedule((2, 2, 4), (49, 20, 12)) in beside


@pytest.mark.parametrize("patches", [2, 9, 16, 49, 196, 1369])
def test_usual_counts_fall_and_hold_the_halves(patches):
    counts = usual_counts(patches)
    assert patches // 2 in counts
    assert all(a > b for a, b in itertools.pairwise((patches, *counts))) and counts[-1] >= 1
    Space(4, patches, counts)


@pytest.mark.parametrize("counts", [(), (49,), (24, 24), (12, 24), (10, 0)])
def test_counts_that_do_not_fall_are_refused(counts):
    with pytest.raises(InputError, match="cannot keep"):
        Space(8, 49, counts)


def test_one_patch_has_nothing_to_slim():
    with pytest.raises(InputError, match="nothing to slim"):
        usual_counts(1)


def test_a_name_says_all():
    one = Schedule((2, 3, 3), (49, 24, 12))
    assert one.name == "2x49-3x24-3x12" and one.tokens == 2 * 49 + 3 * 24 + 3 * 12
