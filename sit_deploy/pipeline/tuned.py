"""What came of a tuning: the decision, what it rests on, and its record for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sit_deploy.tune.cache import Timings
from sit_deploy.tune.choose import Choice
from sit_deploy.tune.measured import Candidate, Measured, pareto_front
from sit_deploy.tune.search import Found, Space


@dataclass(frozen=True)
class Tuning:
    """What came of a tuning.

    Attributes:
        choice: the decision.
        found: what it rests on.
        space: what there was to choose from.
        limit: that plans were held to, in words.
        timings: the measures, to be kept.
        timed: how many plans were timed in this build; times of others were kept from an earlier one.
        tries: share of the work in 8 bits and points of top-1 lost, of each plan whose accuracy was measured.
        refused: why candidates could not be built.
    """

    choice: Choice
    found: Found
    space: Space
    limit: str
    timings: Timings
    timed: int
    tries: tuple[tuple[float, float], ...] = ()
    refused: Mapping[Candidate, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether a plan was chosen; else the usual one is built, for want of time or quiet."""
        return self.choice.plan is not None

    @property
    def chosen(self) -> Candidate:
        """What is built."""
        return self.choice.plan.candidate if self.choice.plan else self.space.usual

    @property
    def best_float(self) -> str | None:
        """The fastest float precision that keeps the limit, or was measured at all where none does; None where one could not be told."""
        if any(one.candidate.is_float and not one.timing.usable for one in self.found.measured):
            return None  # it may be the fastest: what compares them at the end times all
        if self.choice.best_float is not None:
            return self.choice.best_float.candidate.rest
        floats = pareto_front(one for one in self.found.measured if one.candidate.is_float)
        return floats[0].candidate.rest if floats else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for the report."""
        front = {one.candidate for one in pareto_front(self.found.measured)}
        return {
            "verdict": self.choice.verdict.value,
            "limit": self.limit,
            "timed": self.timed,
            "seconds": round(self.found.seconds, 1),
            "finished": self.found.finished,
            "default": sorted(self.space.default),
            "tie": self.choice.tie and _row(self.choice.tie, front, self.chosen),
            "candidates": [_row(one, front, self.chosen) for one in self.found.measured],
        }

    def given_up(self, instead: str) -> dict[str, Any]:
        """Return plain types, for the report of the float engine that was built instead of 8 bits, in a precision."""
        record, front = self.to_dict(), {one.candidate for one in pareto_front(self.found.measured)}
        built = Candidate(rest=instead)
        rows = [_row(one, front, built) for one in self.found.measured]
        return {**record, "instead": instead, "tie": None, "candidates": rows}


def _row(one: Measured, front: set[Candidate], chosen: Candidate) -> dict[str, Any]:
    candidate, timing = one.candidate, one.timing
    db = one.error.sqnr_db if one.error is not None else math.inf
    return {
        "groups": sorted(candidate.groups),
        "high": list(candidate.high),
        "rest": candidate.rest,
        "ratio": timing.ratio,
        "low": timing.low,
        "high_quartile": timing.high,
        "ms": timing.ms,
        "doubt": timing.noise,
        "sqnr_db": db if math.isfinite(db) else None,
        "drop": one.drop,
        "front": candidate in front,
        "chosen": candidate == chosen,
    }
