"""What a search for a token schedule found (search.json) as a typed value: every schedule worth showing, and the one that was chosen.

Fields that are not named here are let through and kept: a newer version may write them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from sit_deploy import limits
from sit_deploy.errors import GateError, InputError
from sit_deploy.manifest import Count, Percent, Sha256, Text
from sit_deploy.models.config import schedule_name
from sit_deploy.report.build_types import Images, Positive, Share
from sit_deploy.report.json_record import JsonRecord
from sit_deploy.schema import read_json

SCHEMA = 1
RECORD, BUNDLE = "search.json", "bundle"  # in the folder of a search
_AGAIN = "copy the folder that `sit-deploy search -o` wrote again"
_Milliseconds = Annotated[float, Meta(gt=0, le=limits.REAL)]
_Blocks = Annotated[int, Meta(ge=1, le=limits.BLOCKS)]
_Tokens = Annotated[int, Meta(ge=1, le=limits.INTEGER)]


class ClosenessRecord(Struct):
    """How close a slimmed model is to the unslimmed one (`sit_deploy.search.scored.Score`)."""

    divergence: Positive
    agreement: Share
    images: Images
    top1: Percent | None = None


class PointRecord(Struct):
    """A schedule that was tried; of one that was built, what its engine was measured to do.

    `student_ms` is foretold, of a student with TSMs in place of the method without training; records of older releases have none.
    """

    stages: list[_Blocks]
    kept: list[_Tokens]
    precision: Text
    predicted_ms: _Milliseconds
    score: ClosenessRecord
    front: bool
    chosen: bool
    measured_ms: _Milliseconds | None = None
    low_ms: _Milliseconds | None = None
    high_ms: _Milliseconds | None = None
    engine_score: ClosenessRecord | None = None
    doubt: str | None = None
    student_ms: _Milliseconds | None = None

    def __post_init__(self) -> None:
        if not self.stages or len(self.stages) != len(self.kept):
            raise ValueError(f"it keeps {len(self.kept)} counts of tokens in {len(self.stages)} stages")
        if (self.low_ms is None) != (self.high_ms is None):
            raise ValueError("it has one end of a range of latencies")

    @property
    def name(self) -> str:
        """Its blocks and tokens, as 2x49-3x24-3x12."""
        return schedule_name(self.stages, self.kept)

    @property
    def ms(self) -> float:
        """Its latency, measured where it was."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def closeness(self) -> ClosenessRecord:
        """That of its engine where it was built."""
        return self.engine_score or self.score


class SearchRecord(JsonRecord):
    """A search.

    Attributes:
        model: that slims.
        engine: kind and version.
        where: CPU or GPU that latencies are of.
        limit_ms: of a batch, that was asked for.
        asked: the same in words: "5 ms", "2x the speed of the unslimmed model".
        method: that slims without training.
        images: where the images are from, and what labels they have.
        unslimmed_ms: of a batch, of the unslimmed model by precision.
        unslimmed_top1: percent of labelled images.
        max_accuracy_drop: points of it that the engine may lose; None where nothing was said.
        unsound: why no such limit can be judged on these images; None where one can.
        commands: that build and train what was chosen, by what they do.
        notes: what else to know, in sentences.
        bundle: digest of the bundle that was chosen; None where none was.
    """

    schema: int
    date: Text
    model: Text
    engine: Text
    where: Text
    batch_size: Annotated[int, Meta(ge=1, le=limits.BATCH)]
    threads: Count | None
    limit_ms: _Milliseconds
    asked: Text
    method: Text
    images: Text
    unslimmed_ms: dict[str, _Milliseconds]
    unslimmed_top1: Percent | None
    points: Annotated[list[PointRecord], Meta(min_length=1)]
    tried: Count
    finished: bool
    seconds: Positive
    commands: dict[str, str]
    notes: list[str]
    bundle: Sha256 | None = None
    max_accuracy_drop: float | None = None
    unsound: str | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema}, and {SCHEMA} is known here")
        chosen = [point for point in self.points if point.chosen]
        if len(chosen) > 1:
            raise ValueError(f"{len(chosen)} of its points are chosen")
        if chosen and chosen[0].precision not in self.unslimmed_ms:
            raise ValueError(f"unslimmed_ms has no {chosen[0].precision}, which was chosen")

    @property
    def chosen(self) -> PointRecord | None:
        """The schedule that was chosen; None where none kept the limit when it was timed."""
        return next((point for point in self.points if point.chosen), None)

    @property
    def drop(self) -> float | None:
        """Points of top-1 that the chosen engine loses; None of images without labels."""
        chosen = self.chosen
        if chosen is None or chosen.closeness.top1 is None or self.unslimmed_top1 is None:
            return None
        return self.unslimmed_top1 - chosen.closeness.top1

    @property
    def failure(self) -> str | None:
        """What was asked for and not found, as a sentence without capital and full stop; None where all was."""
        if self.chosen is None:
            return (
                self.notes[-1] if self.notes else f"no schedule that was built takes {self.limit_ms:.3g} ms"
            )
        if self.max_accuracy_drop is not None and self.unsound is not None:
            return f"--max-accuracy-drop cannot be judged here: {self.unsound}"
        # "not <=", so that a figure that is missing or NaN refuses rather than passes
        if self.max_accuracy_drop is None or (self.drop is not None and self.drop <= self.max_accuracy_drop):
            return None
        lost = "an unknown number of" if self.drop is None else f"{self.drop:.2f}"
        return (
            f"{self.chosen.name} loses {lost} points of top-1, and --max-accuracy-drop allows {self.max_accuracy_drop:g}; ask for a higher "
            "latency, or fit or train it, by the commands that go with it"
        )

    def require(self) -> None:
        """Hold what was found to what was asked for.

        Raises:
            GateError: no engine keeps the latency, or the one that was chosen loses more of the accuracy than allowed.
        """
        if self.failure is not None:
            raise GateError(self.failure)


def read_search(path: Path) -> SearchRecord:
    """Return what a folder of a search holds, or its search.json.

    Raises:
        InputError: no such file, or one that is not as it should be.
    """
    file = path / RECORD if path.is_dir() else path
    fields: Any = read_json(file, _AGAIN)
    if not isinstance(fields, dict) or not {"schema", "points"} <= fields.keys():
        raise InputError(f"{file} is not of a search by sit-deploy; {_AGAIN}")
    return SearchRecord.from_dict(fields, file, _AGAIN)
