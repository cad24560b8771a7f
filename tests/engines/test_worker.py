from __future__ import annotations

import time

import pytest

from engines import worker


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.0, 2, 2), (0.02, 9, 40)])
def test_warm_up_goes_on_until_it_is_steady(seconds: float, least: int, most: int):
    """The first calls take ten times as long; warming up for less than they take goes on until they are over."""
    durations = [0.02] * 3 + [0.01] * 3 + [0.002] * 200
    taken = []

    def call() -> None:
        taken.append(durations[len(taken)])
        time.sleep(taken[-1])

    worker._warm_up(call, seconds)
    assert least <= len(taken) <= most


def test_warm_up_ends_where_nothing_is_ever_steady():
    taken = []

    def call() -> None:
        taken.append(0.001 * 1.5 ** (len(taken) // 3))  # every slice takes longer
        time.sleep(taken[-1])

    worker._warm_up(call, 0.01)
    assert sum(taken) < 1
