"""A speed-up in a benchmark's results and tables: a figure with its quartiles, or why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from engines.speedup import Speedup, of_ratios

NONE = "not measurable"


def fields(found: Speedup) -> dict[str, Any]:
    """JSON values: median and quartiles of the rounds' ratios, null where they bear no figure out, and the reason."""
    quartiles = [found.low, found.high] if found.measurable else None
    return {"median": found.median, "quartiles": quartiles, "doubt": found.doubt}


def text(found: dict[str, Any], form: str = ".2f") -> str:
    """A table's cell of `fields`: "1.52 (1.50–1.55)", or that it was not measurable; results of before have no doubt."""
    if found["median"] is None:
        return NONE
    low, high = found["quartiles"]
    return f"{found['median']:{form}} ({low:{form}}–{high:{form}})"


def of_times(slow: Sequence[float], fast: Sequence[float]) -> Speedup:
    """Compare times of the same rounds that a script took by itself."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return of_ratios(ratios, statistics.median(slow), statistics.median(fast))
