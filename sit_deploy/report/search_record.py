"""What a search for a token schedule found (search.json) as a typed value: every schedule worth showing, and the one that was chosen.

Fields that are not named here are let through and kept: a newer version may write them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from sit_deploy import limits
from sit_deploy.manifest import Count, Percent, Text
from sit_deploy.models.config import schedule_name
from sit_deploy.report.build_types import Images, Positive, Share
from sit_deploy.report.json_record import JsonRecord

SCHEMA = 1
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
    """A schedule that was tried; of one that was built, what its engine was measured to do."""

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
        asked: the same in words: "5 ms", "2x as fast as the unslimmed model".
        method: that slims without training.
        images: where the images are from, and what labels they have.
        unslimmed_ms: of a batch, of the unslimmed model by precision.
        unslimmed_top1: percent of labelled images.
        commands: that build and train what was chosen, by what they do.
        notes: what else to know, in sentences.
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
    points: list[PointRecord]
    tried: Count
    finished: bool
    seconds: Positive
    commands: dict[str, str]
    notes: list[str]

    @property
    def chosen(self) -> PointRecord | None:
        """The schedule that was chosen; None where none kept the limit when it was timed."""
        return next((point for point in self.points if point.chosen), None)
