"""Cells of the GPU's table: what is timed, and what comes of too many images."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_cells import Candidate, Cell, time_turn_about

CPU = torch.device("cpu")


def good(images: Any) -> Any:
    return images + 1


def test_more_images_than_memory_are_a_row_each() -> None:
    cells = [Cell("a", name, 10**12) for name in "xy"]
    time_turn_about(cells, [Candidate(good, good)] * 2, CPU, (8, 8), 0.01)
    assert [cell.skipped for cell in cells] == ["out of memory"] * 2


def test_times_and_images_a_second_are_of_the_same_median() -> None:
    """That of the rounds' medians; a round with many slow calls counts once."""
    rounds = [[1.0], [2.0], [9.0] * 5]
    found = Cell("a", "x", 4, None, rounds, rounds).to_dict()
    assert found["device"]["p50_ms"] == 2000 and found["images_per_second"] == 2.0
    assert found["end_to_end"]["p50_ms"] == 2000 and found["device"]["calls"] == 7
