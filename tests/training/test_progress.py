"""Where a run says that it is, and how long it has to go."""

from __future__ import annotations

import pytest

from training.progress import Pace, Progress, duration


def test_progress_and_time_left() -> None:
    pace = Pace()
    assert pace.left(100, 3) is None
    pace.validated(2.0)
    pace.trained(1, 9.0)
    assert (pace.step, pace.left(100, 3)) == (9.0, pytest.approx(906.0))
    pace.trained(10, 5.0)  # what was measured first, with the start of workers in it, counts no more
    assert (pace.step, pace.left(100, 3)) == (0.5, pytest.approx(56.0))
    assert Progress(3, 12, 40, 310, 130.0).text == "epoch 3/12, step 40/310, 2 min 10 s left"
    assert Progress(0, 12, 310, 310, None).text == "epoch 0/12"
    assert Progress(12, 12, 310, 310, 3.0).text == "epoch 12/12, step 310/310"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
