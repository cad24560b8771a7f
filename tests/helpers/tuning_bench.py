"""A tuning on made-up times: a bench that stands for the engine, and the work of a build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engines
from sit_deploy.pipeline.request import AUTO
from sit_deploy.pipeline.work import Work
from sit_deploy.tune.measured import Candidate, LogitsError, Timing
from tests.helpers.digits import Digits

DEFAULT = frozenset({"qkv", "proj", "fc1", "fc2", "tsm"})
DB = {"stem": 38.0, "attention": 30.0, "residual": 25.0, "aggregation": 40.0, "head": 45.0}


@dataclass
class Bench:
    """What stands for the engine: the default groups are 1.5 times as fast as fp32, the stem makes it 2.

    Attributes:
        noise: of every timing.
        drops: points lost, by the number of groups in 8 bits.
    """

    stem: float = 0.17
    bf16: float = 0.0
    noise: str | None = None
    drops: dict[int, float] = field(default_factory=dict)
    fp32: float = 1.0
    scale: float = 1.0
    asked: list[Candidate] = field(default_factory=list)
    flipped_db: float | None = None  # of what is corrected otherwise than was measured
    flipped: bool = False
    refused: dict[Candidate, str] = field(default_factory=dict)

    def correct(self, corrected: bool) -> None:
        self.flipped = True

    def __call__(self, *_: Any) -> Bench:
        return self

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def time(self, candidate: Candidate) -> Timing | None:
        self.asked.append(candidate)
        if candidate in self.refused:
            return None
        cost = self.fp32 if candidate.is_float else 1 - 0.0667 * len(candidate.groups & DEFAULT)
        cost += -self.stem if "stem" in candidate.groups else 0.0
        cost += 0.05 * len(candidate.groups - DEFAULT - {"stem"}) + 0.04 * len(candidate.high)
        cost *= 1 if candidate == Candidate() else self.scale
        return Timing(1 / cost, 0.99 / cost, 1.01 / cost, 5 * cost, self.noise)

    def error(self, candidate: Candidate) -> LogitsError:
        if self.flipped and self.flipped_db is not None:
            return LogitsError(10 ** (-self.flipped_db / 10))
        power = 1e-5 * len(candidate.groups & DEFAULT) / max(1, len(candidate.high))
        return LogitsError(power + sum(10 ** (-DB[group] / 10) for group in candidate.groups - DEFAULT))

    def drop(self, candidate: Candidate, _: Any) -> float:
        return 0.0 if candidate.high else self.drops.get(len(candidate.groups), 0.0)


def work_for(digits: Digits, **fields: Any) -> Work:
    request = digits.request(Path("never"), **({"quantize": AUTO} | fields))
    return Work(request, lambda *_: None, engine=engines.get("onnxruntime"))
