"""The report of a build (report.json) as a typed value: every field that a page or a verdict reads, with its type and bounds.

Fields that are not named here are let through and kept (`BuildReport.to_dict`): a newer version may write them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from engines.speedup import Speedup, of_ratios
from sit_deploy import limits
from sit_deploy.manifest import RANDOM, Count, Model, Percent, Text
from sit_deploy.outputs import has_classes
from sit_deploy.report.json_record import JsonRecord
from sit_deploy.report.tuning_text import plan_text
from sit_deploy.schema import check

Number = Annotated[float, Meta(ge=-limits.REAL, le=limits.REAL)]
Positive = Annotated[float, Meta(ge=0, le=limits.REAL)]
Images = Annotated[int, Meta(ge=1, le=limits.IMAGES)]
Share = Annotated[float, Meta(ge=0, le=1)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]


class OutputRecord(Struct):
    """One output of a step (`sit_deploy.measure.parity.OutputError`)."""

    name: Text
    error: Positive | None
    sqnr_db: Number | None
    cosine: Cosine
    lowest_cosine: Cosine
    least_cosine: Cosine | None


class HopRecord(Struct):
    """A step that was compared with the step before it (`sit_deploy.measure.parity.Hop`)."""

    name: Text
    compared: bool
    passed: bool
    note: str
    error: Positive | None
    step_error: Positive | None
    sqnr_db: Number | None
    agreement: Share | None
    tolerance: Positive | None
    outputs: list[OutputRecord] = []

    def __post_init__(self) -> None:
        told = self.agreement is not None or any(output.least_cosine is not None for output in self.outputs)
        if self.compared and (not told or self.tolerance is None):
            raise ValueError("it was compared and has no agreement or no tolerance")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> HopRecord:
        """Return the record of `Hop.to_dict`."""
        return check(fields, cls, f"hop {fields['name']}", "")


class HeldBackNode(Struct):
    """A node that is kept in float32, and why."""

    node: str
    op_type: str
    reason: str


class PlanRecord(Struct):
    """How precisions were given to the graph's nodes."""

    held_back: list[HeldBackNode]


class GraphRecord(Struct):
    """What is in the graph."""

    operators: dict[str, Count]


class EngineRecord(Struct):
    """How the engine was built."""

    kind: Text
    version: Text
    target: Text
    why: str
    details: dict[str, Any]


class WeightsRecord(Struct):
    """Where the weights come from."""

    source: Text

    @property
    def is_random(self) -> bool:
        """Whether they are nobody's: random numbers."""
        return self.source == RANDOM


class EightBitSpeed(Struct):
    """How much faster 8 bits are, as a build measured it; an older report has no range and no doubt: its rounds have."""

    over: Text
    batch_size: Annotated[int, Meta(ge=1, le=limits.BATCH)]
    ratio: Positive | None
    p50_ms: Annotated[dict[str, Positive], Meta(min_length=2, max_length=2)]
    per_round: list[Annotated[float, Meta(gt=0, le=limits.REAL)]]
    low: Positive | None = None
    high: Positive | None = None
    doubt: str | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.doubt is UNSET and not self.per_round:
            raise ValueError("it has no rounds")
        if self.doubt is None and None in (self.ratio, self.low, self.high):
            raise ValueError("it has neither a figure nor a doubt")

    def speedup(self) -> Speedup:
        """Return the speed-up with its doubt; both sides' times stand in `p50_ms`, those of `over` first."""
        baseline, candidate = self.p50_ms.values()
        if self.doubt is UNSET:
            return of_ratios(self.per_round, baseline, candidate)
        return Speedup(
            self.ratio, self.low, self.high, tuple(self.per_round), baseline, candidate, self.doubt
        )


class QuantizedLayerRecord(Struct):
    """A layer with what it runs in, why, and with what error."""

    layer: Text
    precision: str
    reason: str
    scale: Positive | None
    shift: int | None
    sqnr_db: Number | None
    alone_db: Number | UnsetType | None = UNSET


class TunedPlan(Struct):
    """A plan that was measured, or a float engine: groups in 8 bits, layers of them that stay high, and what is beside them.

    `ratio` with quartiles is times as fast as the float32 engine, `drop` points of top-1 lost; `doubt` why the times say nothing.
    """

    groups: list[Text]
    high: list[Text]
    rest: Text
    ratio: Positive
    low: Positive
    high_quartile: Positive
    ms: Positive
    doubt: str | None
    sqnr_db: Number | None
    drop: Number | None
    front: bool
    chosen: bool

    def words(self, default: list[str]) -> str:
        """Return what it is, in words."""
        return plan_text(self.groups, self.rest, len(self.high), default)


class TuningRecord(Struct):
    """How a plan was chosen by measuring (`sit_deploy.pipeline.tuned.Tuning`).

    `instead` is the float precision that was built, where 8 bits were given up; `timed` how many plans were timed in that build, where
    times of others were kept from an earlier one.
    """

    verdict: Text
    limit: str
    seconds: Positive
    finished: bool
    default: list[Text]
    tie: TunedPlan | None
    candidates: list[TunedPlan]
    instead: Text | UnsetType = UNSET
    timed: Count | UnsetType = UNSET

    @property
    def chosen(self) -> TunedPlan | None:
        """The plan that was built, where it was measured."""
        return next((plan for plan in self.candidates if plan.chosen), None)

    @property
    def settled(self) -> bool:
        """Whether measuring decided."""
        return self.verdict not in ("noise", "no time")


class Quantization(Struct):
    """What there is to say of 8 bits; `tuning` where measuring chose its layers."""

    method: str
    rest: str
    share_of_macs: Share
    layers: list[QuantizedLayerRecord]
    speed: EightBitSpeed | None
    tuning: TuningRecord | UnsetType | None = UNSET


class LayerRecord(Struct):
    """A layer as the engine runs it, with its time."""

    layer: str
    types: list[str]
    ms: Positive | None
    share: Share | None


class EngineLayersRecord(Struct):
    """What a TensorRT engine tells of itself."""

    kept: list[str]
    raised: list[str]
    untold: list[str]
    layers: list[LayerRecord]


class PairedRecord(Struct, kw_only=True):
    """Two sides on the same images, by how many only one of them was right on."""

    images: Images
    lost: Count
    gained: Count
    drop: Number

    def __post_init__(self) -> None:
        if self.lost + self.gained > self.images:
            raise ValueError("lost and gained are more than its images")
        if not math.isclose(self.drop, 100 * (self.lost - self.gained) / self.images, abs_tol=1e-6):
            raise ValueError("drop does not fit lost, gained and images")


class TeacherRecord(PairedRecord, kw_only=True):
    """The teacher beside the student: lost and gained are images that only the teacher, and only the student, is right on."""

    top1: Percent
    top1_interval: tuple[Percent, Percent]
    retained: Positive | None = None


class ClassRow(Struct):
    """How many images of a class each side has right."""

    name: str
    images: Count
    reference: Count
    engine: Count


class FlipRecord(Struct):
    """An image whose class changed; names of its own class and of those that both sides give it."""

    image: str
    label_name: str
    reference_name: str
    engine_name: str
    reference_probability: Share
    engine_probability: Share
    picture: Annotated[str, Meta(pattern="^data:image/jpeg;base64,[A-Za-z0-9+/=]*$")] | None = None


class AccuracyRecord(PairedRecord, kw_only=True):
    """Engine and reference on labelled images (`sit_deploy.measure.accuracy.Accuracy.to_dict`)."""

    measured_on: Text
    data: str
    reference_top1: Percent
    engine_top1: Percent
    reference_top5: Percent | None
    engine_top5: Percent | None
    reference_top1_interval: tuple[Percent, Percent]
    engine_top1_interval: tuple[Percent, Percent]
    agreement: Percent
    p_value: Share
    classes: Annotated[int, Meta(ge=0, le=limits.CLASSES)]
    present: Count
    majority: Percent
    reference_classes: Count
    engine_classes: Count
    ties: Count
    alike: bool
    sqnr_db: Number | None
    cosine: Annotated[float, Meta(ge=-1.001, le=1.001)]
    lowest_cosine: Annotated[float, Meta(ge=-1.001, le=1.001)]
    by_class: list[ClassRow] = []
    flips: list[FlipRecord] = []
    doubts: list[str] = []
    notes: list[str] = []
    warning: str | None = None
    teacher: TeacherRecord | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> AccuracyRecord:
        """Return the record of `Accuracy.to_dict`, with what it was measured on."""
        return check(fields, cls, "accuracy", "")


class PreprocessingRecord(Struct):
    """What the page says of the preprocessing."""

    size: Annotated[list[Count], Meta(min_length=2, max_length=2)]
    mean: list[Number]
    std: list[Number]
    resize: Any
    interpolation: Text
    orientation: str = "stored"
    crop_mode: str = "center"
    crop_offset: str = "round"


class GraphReport(JsonRecord, kw_only=True):
    """What there is to say of a graph and of how it was checked: all of the report of an export."""

    weights: WeightsRecord
    preprocessing: PreprocessingRecord
    preprocessing_source: dict[str, str] | None = None
    notes: list[str]
    warnings: list[str] | UnsetType = UNSET
    compared_on: str
    hops: list[HopRecord]
    plan: PlanRecord
    graph: GraphRecord

    def warns(self, note: str) -> bool:
        """Whether a note is one that a reader must not miss."""
        if self.warnings is UNSET:
            return note.startswith(_WARNED)
        return note in self.warnings


# how warnings began in reports that do not list them (before version 0.2)
_WARNED = (
    "preprocessing:",
    "EXIF:",
    "random weights",
    "do not ship",
    "the accuracy here is in doubt",
    "calibrated on images that",
    "the accuracy proves nothing",
    "not all in 8 bits",
)


class BuildReport(GraphReport, kw_only=True):
    """report.json of a bundle."""

    model: Model
    classes: list[str] | None
    precision: Text
    batch: dict[str, Count]
    engine: EngineRecord
    quantization: Quantization | None
    accuracy: AccuracyRecord | None
    seconds: dict[str, Positive]
    versions: dict[str, str | None]
    command: str
    engine_layers: EngineLayersRecord | None = None
    tuning: TuningRecord | UnsetType = UNSET

    @property
    def embeds(self) -> bool:
        """Whether the bundle gives no logits."""
        given = [one.name for one in self.hops[0].outputs] if self.hops else []
        return bool(given) and not has_classes(given)

    @property
    def tuned(self) -> TuningRecord | None:
        """The tuning of its layers in 8 bits, also where it ended in a float engine; older reports have none."""
        if self.quantization is not None and self.quantization.tuning is not UNSET:
            return self.quantization.tuning
        return None if self.tuning is UNSET else self.tuning
