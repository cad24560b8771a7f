"""How fast things are, as typed values of a JSON file: histograms of calls, and speed-ups."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sit_deploy.manifest import Count
from sit_deploy.report.build_types import Positive


class SpeedupRecord(Struct):
    """A speed-up with both sides' milliseconds, as `engines.speedup.Speedup.to_dict`; no figures where the clock tells none."""

    median: Positive | None
    low: Positive | None
    high: Positive | None
    baseline_ms: Positive
    candidate_ms: Positive
    doubt: str | None

    def __post_init__(self) -> None:
        if self.doubt is None and None in (self.median, self.low, self.high):
            raise ValueError("it has neither a figure nor a doubt")


class HistogramRecord(Struct):
    """How many calls took how long."""

    edges_ms: Annotated[list[Positive], Meta(min_length=2, max_length=10_000)]
    counts: list[Count]

    def __post_init__(self) -> None:
        if len(self.edges_ms) != len(self.counts) + 1 or sorted(self.edges_ms) != self.edges_ms:
            raise ValueError("edges_ms must rise and be one more than counts")
        if not any(self.counts):
            raise ValueError("counts has no call")
