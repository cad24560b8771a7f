"""Evidence of a bundle (the JSON of `sit-deploy report`) as a typed value: what was measured of it on a machine.

Fields that are not named here are let through and kept (`Evidence.to_dict`): a newer version may write them.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from sit_deploy import limits
from sit_deploy.manifest import Count, Percent, Text
from sit_deploy.report.build_types import (
    AccuracyRecord,
    BuildReport,
    HopRecord,
    LayerRecord,
    Number,
    PairedRecord,
    Positive,
)
from sit_deploy.report.check_record import ElsewhereRecord
from sit_deploy.report.json_record import JsonRecord
from sit_deploy.report.search_record import SearchRecord
from sit_deploy.report.timing_types import HistogramRecord, SpeedupRecord

Cosine = Annotated[float, Meta(ge=-1.001, le=1.001)]
SCHEMA = 2  # of the JSON of a report


class Stage(Enum):
    """The stages that every bundle may have, by their names in a report; graphs and the engine are named by what they are."""

    TEACHER = "teacher"
    TEACHER_ENGINE = "teacher engine"
    STUDENT = "student"
    DEPLOY_FORM = "deploy form"

    @staticmethod
    def of_graph(precision: str) -> str:
        """Return the name of the stage of an ONNX graph."""
        return f"ONNX {precision}"

    @staticmethod
    def of_engine(kind: str) -> str:
        """Return the name of the stage of the bundle's engine."""
        return f"{kind} engine"


class StageRecord(Struct):
    """A stage of the way from teacher to engine: what it costs and gives."""

    name: Text
    runtime: str
    size: Count
    macs: Annotated[int, Meta(ge=1, le=limits.INTEGER)]
    note: str
    top1: Percent | None
    agreement: Percent | None
    sqnr_db: Number | None
    latency_ms: Annotated[float, Meta(gt=0, le=limits.REAL)] | None
    nearest: Percent | None = None
    cosine: Cosine | None = None
    lowest_cosine: Cosine | None = None


class StagesRecord(Struct):
    """Every stage on the same images; the last is the engine itself."""

    entries: Annotated[list[StageRecord], Meta(min_length=1)]
    images: Count
    batch_size: Annotated[int, Meta(ge=1, le=limits.BATCH)]
    given: Count | None = None

    @property
    def engine_stage(self) -> StageRecord:
        """The stage of the engine, which may not have run."""
        return self.entries[-1]

    def find(self, stage: Stage) -> StageRecord:
        """Return a stage that there is."""
        return next(entry for entry in self.entries if entry.name == stage.value)


class TimingRecord(Struct):
    """The times of a stage."""

    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    images_per_second: Positive
    iterations: Count
    histogram: HistogramRecord


class AroundRecord(Struct):
    """What happens around the engine, for one image."""

    image: str
    decode_ms: Positive
    prepare_ms: Positive
    classes_ms: Positive | None


class DriftedTensor(Struct):
    """A tensor of the residual stream, and how near it is to float32's."""

    tensor: str
    sqnr_db: Number | None


class DriftRecord(Struct):
    """How the error grows along the network."""

    note: str
    tensors: list[DriftedTensor]
    tolerance: Positive | None = None
    first_bad: DriftedTensor | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.tensors and (self.tolerance is None or self.first_bad is UNSET):
            raise ValueError("it has tensors, and no tolerance or no first_bad")


class EmbeddingRecord(Struct, kw_only=True):
    """The vectors of reference and engine on the same images (`sit_deploy.measure.neighbours.Neighbours`).

    Attributes:
        output: which vectors.
        measured_on: the stage whose they are.
        data: which images; None for synthetic ones.
        classes: of the images, None where labels tell nothing; then `reference`, `engine`, `same_label` and `paired` are None too.
        paired: images whose nearest other has their label by one side's vectors alone.
        majority: percent of the images that have the commonest label.
        alone: images that are the only ones of their label.
    """

    output: Text
    measured_on: Text
    data: Text | None
    images: Annotated[int, Meta(ge=1, le=limits.IMAGES)]
    classes: Count | None
    reference: Percent | None
    engine: Percent | None
    reference_interval: tuple[Percent, Percent] | None
    engine_interval: tuple[Percent, Percent] | None
    same_label: Percent | None
    same_neighbour: Percent | None
    cosine_min: Cosine
    cosine_mean: Cosine
    farthest: str
    paired: PairedRecord | None
    majority: Percent | None
    alone: Annotated[int, Meta(ge=0, le=limits.IMAGES)] = 0
    notes: list[str] = []

    def __post_init__(self) -> None:
        told = {self.classes is None, self.reference is None, self.engine is None, self.paired is None}
        if len(told) != 1:
            raise ValueError("it has labels in part")
        if self.cosine_min > self.cosine_mean + 1e-9:
            raise ValueError("cosine_min is above cosine_mean")

    @property
    def is_data(self) -> bool:
        """Whether they are images of the user's."""
        return self.data is not None

    @property
    def agreement(self) -> float | None:
        """Percent of images that get the same label, or have the same neighbour where there are no labels."""
        return self.same_neighbour if self.same_label is None else self.same_label


class MachineRecord(Struct):
    """Where it was measured."""

    cpu_model: str
    usable_cpus: Count


class Evidence(JsonRecord, kw_only=True):
    """A bundle as it was measured on a machine (`sit_deploy.validation.evidence.gather`).

    Attributes:
        elsewhere: what check.py of a folder of `package python` measured of it, on other machines.
        embedding: what its vectors are, of a bundle without logits, which has no accuracy.
        search: that chose its token schedule, where `sit-deploy search` built it.
        threads_note: where the bundle was timed on others than it was built for, or on more than there are CPUs; as a clause.
    """

    bundle: Text
    name: Text
    date: str
    build: BuildReport
    golden: HopRecord | None
    ledger: StagesRecord
    accuracy: AccuracyRecord | None
    timing: dict[str, TimingRecord]
    around: AroundRecord
    speedups: dict[str, SpeedupRecord]
    drift: DriftRecord
    layers: list[LayerRecord]
    threads: Annotated[int, Meta(ge=1, le=limits.THREADS)] | None
    threads_note: Text | None = None
    machine: MachineRecord
    versions: dict[str, str | None]
    elsewhere: tuple[ElsewhereRecord, ...] = ()
    search: SearchRecord | None = None
    embedding: EmbeddingRecord | None = None

    def __post_init__(self) -> None:
        if self.golden is not None and self.golden.passed and self.golden.error is None:
            raise ValueError("golden passed without an error that was measured")
        if self.embedding is not None and self.accuracy is not None:
            raise ValueError("it has an accuracy and vectors")
        names = {entry.name for entry in self.ledger.entries}
        if missing := sorted(self.speedups.keys() - names):
            raise ValueError(f"speedups has {missing[0]!r}, which ledger.entries has not")
