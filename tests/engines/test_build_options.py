from __future__ import annotations

import pytest

import engines


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"dynamic_batch": (4, 2, 8)}, "4:2:8"),
        ({"dynamic_batch": (0, 1, 8)}, "0:1:8"),
        ({"optimization_level": 6}, "0 to 5, got 6"),
        ({"workspace_bytes": 0}, "got 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 1000 * 64}, "threads must be at most "),
    ],
)
def test_options_out_of_range(bad: dict, named: str):
    with pytest.raises(engines.EngineBuildError, match=named):
        engines.BuildOptions(**bad)
