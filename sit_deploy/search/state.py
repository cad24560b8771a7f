"""What a search has done so far, in a file of its folder: one that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, to_builtins

from engines.files import atomic_path
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.schema import decode
from sit_deploy.search.explore import LEVELS
from sit_deploy.search.scored import Score

SCHEMA = 1
_Blocks = Annotated[int, Meta(ge=1, le=limits.BLOCKS)]
_Tokens = Annotated[int, Meta(ge=1, le=limits.INTEGER)]
_Images = Annotated[int, Meta(ge=1, le=limits.IMAGES)]


class _Entry(Struct):
    stages: list[_Blocks]
    kept: list[_Tokens]
    level: Annotated[int, Meta(ge=0, lt=LEVELS)]
    divergence: Annotated[float, Meta(ge=0)]
    agreement: Annotated[float, Meta(ge=0, le=1)]
    images: _Images
    top1: Annotated[float, Meta(ge=0, le=100)] | None = None


class _File(Struct):
    schema: int
    key: str
    counts: Annotated[list[_Images], Meta(min_length=LEVELS, max_length=LEVELS)]
    scores: list[_Entry]


class ScoreFile:
    """The file of scores.

    Args:
        path: of the file.
        key: what scores hold for: the weights, the method, the images.

    Raises:
        InputError: it is damaged, or scores of something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.counts: tuple[int, ...] = ()
        self.scores: dict[tuple[Schedule, int], Score] = {}
        if not path.exists():
            return
        again = "delete it, or choose another -o"
        found = decode(path, _File, again)
        if found.schema != SCHEMA:
            raise InputError(f"{path} is of another release (schema {found.schema}); {again}")
        if found.key != key:
            raise InputError(
                f"{path} holds scores of other weights, images or options; {again}, or pass --force to begin anew"
            )
        self.counts = tuple(found.counts)
        for one in found.scores:
            schedule = Schedule(tuple(one.stages), tuple(one.kept))
            self.scores[schedule, one.level] = Score(one.divergence, one.agreement, one.images, one.top1)

    def save(self, counts: tuple[int, ...], scores: Mapping[tuple[Schedule, int], Score]) -> None:
        """Write what is known, whole or not at all.

        Raises:
            engines.EngineError: it cannot be written.
        """
        rows = [
            _Entry(list(schedule.stage_blocks), list(schedule.kept), level, *vars_of(score))
            for (schedule, level), score in scores.items()
        ]
        text = json.dumps(to_builtins(_File(SCHEMA, self._key, list(counts), rows)), allow_nan=False)
        with atomic_path(self._path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def vars_of(score: Score) -> tuple[float, float, int, float | None]:
    """Return the fields of a score, in order."""
    return score.divergence, score.agreement, score.images, score.top1
