"""The file that says how far a validation has come (`validate --resume`): what is counted in it is believed only if it adds up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.files import write_whole
from sit_deploy.schema import check, read_json

SCHEMA = 2

_Count = Annotated[int, Meta(ge=0, le=limits.IMAGES)]
_Class = Annotated[int, Meta(ge=0, lt=limits.CLASSES)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Sum = Annotated[float, Meta(ge=0)]


class FlipNote(Struct):
    """As `sit_deploy.measure.tally.Flip`."""

    image: str
    index: _Count
    label: _Class
    reference: _Class
    engine: _Class
    reference_probability: _Share
    engine_probability: _Share
    margin: Annotated[float, Meta(ge=-1, le=1)]


class TallyNote(Struct, forbid_unknown_fields=True):
    """As `sit_deploy.measure.tally.Tally.to_dict`."""

    images: _Count
    counts: dict[str, _Count]
    by_class: dict[Annotated[str, Meta(pattern="^[0-9]{1,7}$")], tuple[_Count, _Count, _Count]]
    signal: _Sum
    noise: _Sum
    cosine: float
    lowest_cosine: Annotated[float, Meta(ge=-1.001, le=1.001)]
    flips: list[FlipNote]
    classes: Annotated[int, Meta(ge=0, le=limits.CLASSES)]
    reference_given: list[tuple[_Class, _Count]]
    given: list[tuple[_Class, _Count]]
    first: list[float]
    alike: bool

    def __post_init__(self) -> None:
        given = (sum(count for _, count in pairs) for pairs in (self.reference_given, self.given))
        rows = self.by_class.values()
        if {sum(row[0] for row in rows), *given} != {self.images} or any(max(row) > row[0] for row in rows):
            raise ValueError("by_class, given and images do not add up")
        if any(count > self.images for count in self.counts.values()):
            raise ValueError("counts are more than its images")
        used = {int(label) for label in self.by_class} | {
            label for label, _ in self.reference_given + self.given
        }
        used |= {label for flip in self.flips for label in (flip.label, flip.reference, flip.engine)}
        if max(used, default=-1) >= max(self.classes, 1) or len(self.first) not in (0, self.classes):
            raise ValueError(f"it has a class beyond its {self.classes}")


class DamagedNote(Struct):
    """As `sit_deploy.data.damaged.DamagedImage`."""

    image: str
    reason: str


class EvaluationNote(Struct):
    """As `sit_deploy.measure.evaluate.Evaluation.to_dict`."""

    tallies: dict[str, TallyNote]
    guesses: list[tuple[_Class, _Class, _Count]]
    done: _Count
    damaged: list[DamagedNote] = []

    def __post_init__(self) -> None:
        counted = {
            sum(count for *_, count in self.guesses),
            *(tally.images for tally in self.tallies.values()),
        }
        if counted != {self.done - len(self.damaged)}:
            raise ValueError("done is not how many images were counted and damaged")


@dataclass(frozen=True)
class Notebook:
    """A file that says how far a run has come.

    Attributes:
        path: the file; made at the first note.
        key: what the run is of; a file of another run is refused.
    """

    path: Path
    key: str

    def read(self, candidates: set[str], images: int) -> dict[str, Any] | None:
        """Return what an earlier run of the same left, as `Evaluation.to_dict`; None where there is no file.

        Args:
            candidates: that are counted.
            images: that there are in all.

        Raises:
            InputError: a file that is no such note, of another run, or whose counts do not add up.
        """
        another = "pass another --resume FILE"
        if not self.path.exists():
            return None
        fields = read_json(self.path, another)
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA or "evaluation" not in fields:
            raise InputError(f"{self.path} is no record of a validation; {another}")
        if fields.get("key") != self.key:
            raise InputError(
                f"{self.path} is of another run: its bundle, engine, weights or images differ; remove it, or pass another "
                "--resume FILE"
            )
        noted = check(fields["evaluation"], EvaluationNote, self.path, f"remove it, or {another}")
        if not candidates <= noted.tallies.keys() or noted.done > images:
            raise InputError(
                f"{self.path} has counted {noted.done} of {images} images of {', '.join(noted.tallies) or 'nothing'}, not of "
                f"{', '.join(candidates)}; remove it, or {another}"
            )
        return fields["evaluation"]

    def write(self, evaluation: dict[str, Any]) -> None:
        """Note how far the run has come, as `Evaluation.to_dict`: whole or not at all."""
        write_whole(self.path, json.dumps({"schema": SCHEMA, "key": self.key, "evaluation": evaluation}))
