"""A loop of fixed work on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines import pace
from engines.pace import Pace


def test_laps_of_a_machine_that_nobody_disturbs() -> None:
    ticks: Iterator[float] = iter(i * 1e-4 for i in range(10_000))
    found = pace.run(0.2, lambda: next(ticks))
    assert found.laps in (100, 101) and found.fastest == pytest.approx(1e-4)
    assert found.seconds == pytest.approx(1e-4 * found.laps)
    assert found.of(found.fastest) == pytest.approx(1.0)


def test_a_process_that_is_often_made_to_wait() -> None:
    """Most laps are as fast as ever; what others took lies between."""
    disturbed = pace.of_laps([1e-4] * 90 + [4e-3] * 10)
    assert disturbed.fastest == 1e-4
    assert disturbed.of(1e-4) == pytest.approx(100 * 1e-4 / (90 * 1e-4 + 10 * 4e-3))
    assert disturbed.of(1e-4) < 0.25


def test_a_cpu_that_is_slow_throughout_is_known_by_another_workers_laps() -> None:
    slow = pace.of_laps([3e-4] * 10)
    assert slow.of(slow.fastest) == pytest.approx(1) and slow.of(1e-4) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("seconds", "lasts"), [(1e-6, 0.005), (0.4, 0.02), (3600.0, 0.05)])
def test_laps_take_a_small_part_of_a_slice(seconds: float, lasts: float) -> None:
    ticks = iter(i * 1e-3 for i in range(1000))
    assert pace.run(seconds, lambda: next(ticks)).seconds == pytest.approx(lasts, abs=1.1e-3)


def test_what_no_clock_can_tell() -> None:
    assert Pace(3, 0.0, 0.0).of(1e-4) == 1.0
