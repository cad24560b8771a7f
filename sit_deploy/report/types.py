"""What report.json of a build and the JSON of `sit-deploy report` must be: every field that a page or a verdict reads."""

from __future__ import annotations

import math
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from sit_deploy import limits
from sit_deploy.manifest import Count, Model, Percent, Text

Number = Annotated[float, Meta(ge=-limits.REAL, le=limits.REAL)]
Positive = Annotated[float, Meta(ge=0, le=limits.REAL)]
Images = Annotated[int, Meta(ge=1, le=limits.IMAGES)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Hop(Struct):
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

    def __post_init__(self) -> None:
        if self.compared and None in (self.agreement, self.tolerance):
            raise ValueError("it was compared and has no agreement or no tolerance")


class HeldBack(Struct):
    """A node that stays in higher precision, and why."""

    node: str
    op_type: str
    reason: str


class Plan(Struct):
    """What was held back when a graph was written in low precision."""

    held_back: list[HeldBack]


class Graph(Struct):
    """What a page shows of a graph."""

    operators: dict[str, Count]


class EngineFacts(Struct):
    """The engine, as the manifest has it."""

    kind: Text
    version: Text
    target: Text
    why: str
    details: dict[str, Any]


class Source(Struct):
    """Where the weights are from."""

    source: Text


class Times(Struct):
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


class SpeedOf8Bits(Struct):
    """The same as a build notes it; an older one has no range."""

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


class QuantizedLayer(Struct):
    """A layer: what it runs in and why, and what quantizing it does to its output."""

    layer: Text
    precision: str
    reason: str
    scale: Positive | None
    shift: int | None
    sqnr_db: Number | None
    alone_db: Number | None = None


class Quantization(Struct):
    """How a graph holds 8 bits."""

    method: str
    rest: str
    share_of_macs: Share
    layers: list[QuantizedLayer]
    speed: SpeedOf8Bits | None


class LayerTime(Struct):
    """A layer of an engine and its time."""

    layer: str
    types: list[str]
    ms: Positive | None
    share: Share | None


class EngineLayers(Struct):
    """What a TensorRT engine tells of itself."""

    kept: list[str]
    raised: list[str]
    untold: list[str]
    layers: list[LayerTime]


class Paired(Struct, kw_only=True):
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


class Teacher(Paired, kw_only=True):
    """The teacher's accuracy beside the student's."""

    top1: Percent
    top1_interval: tuple[Percent, Percent]
    retained: Positive | None = None


class ClassRow(Struct):
    """A class: its images, and how many each side has right."""

    name: str
    images: Count
    reference: Count
    engine: Count


class Flip(Struct):
    """An image whose class the engine changed."""

    image: str
    label_name: str
    reference_name: str
    engine_name: str
    reference_probability: Share
    engine_probability: Share
    picture: Annotated[str, Meta(pattern="^data:image/jpeg;base64,[A-Za-z0-9+/=]*$")] | None = None


class Accuracy(Paired, kw_only=True):
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
    flips: list[Flip] = []
    doubts: list[str] = []
    notes: list[str] = []
    warning: str | None = None
    teacher: Teacher | None = None


class Prepared(Struct):
    """What the page says of the preprocessing."""

    size: Annotated[list[Count], Meta(min_length=2, max_length=2)]
    mean: list[Number]
    std: list[Number]
    resize: Any
    interpolation: Text
    orientation: str = "stored"


class Build(Struct):
    """report.json of a bundle."""

    model: Model
    classes: list[str] | None
    precision: Text
    batch: dict[str, Count]
    engine: EngineFacts
    weights: Source
    hops: list[Hop]
    notes: list[str]
    compared_on: str
    preprocessing: Prepared
    plan: Plan
    graph: Graph
    quantization: Quantization | None
    accuracy: Accuracy | None
    seconds: dict[str, Positive]
    versions: dict[str, str | None]
    command: str
    engine_layers: EngineLayers | None = None
    preprocessing_source: dict[str, str] | None = None


class Entry(Struct):
    """A hop of the ledger."""

    name: Text
    runtime: str
    size: Count
    macs: Annotated[int, Meta(ge=1, le=limits.INTEGER)]
    note: str
    top1: Percent | None
    agreement: Percent | None
    sqnr_db: Number | None
    latency_ms: Annotated[float, Meta(gt=0, le=limits.REAL)] | None


class Ledger(Struct):
    """The hops from the teacher to the engine."""

    entries: Annotated[list[Entry], Meta(min_length=1)]
    images: Count
    batch_size: Annotated[int, Meta(ge=1, le=limits.BATCH)]


class Histogram(Struct):
    """How many calls took how long."""

    edges_ms: Annotated[list[Positive], Meta(min_length=2, max_length=10_000)]
    counts: list[Count]

    def __post_init__(self) -> None:
        if len(self.edges_ms) != len(self.counts) + 1 or sorted(self.edges_ms) != self.edges_ms:
            raise ValueError("edges_ms must rise and be one more than counts")
        if not any(self.counts):
            raise ValueError("counts has no call")


class Timing(Struct):
    """The times of a hop."""

    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    images_per_second: Positive
    iterations: Count
    histogram: Histogram


class Around(Struct):
    """What happens around the engine, for one image."""

    image: str
    decode_ms: Positive
    prepare_ms: Positive
    classes_ms: Positive


class Drifted(Struct):
    """A tensor and its error."""

    tensor: str
    sqnr_db: Number | None


class Drift(Struct):
    """How the error grows along the network."""

    note: str
    tensors: list[Drifted]
    tolerance: Positive | None = None
    first_bad: Drifted | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.tensors and (self.tolerance is None or self.first_bad is UNSET):
            raise ValueError("it has tensors, and no tolerance or no first_bad")


class Machine(Struct):
    """Where it was measured."""

    cpu_model: str
    usable_cpus: Count


class VerdictFacts(Struct):
    """A verdict as it was reached (`sit_deploy.report.verdict`)."""

    outcome: Text
    headline: str
    against: list[str]
    missing: list[str]
    favour: list[str]
    unmeasured: list[str] = []


class Evidence(Struct):
    """A bundle as it was measured (`evidence.gather`)."""

    bundle: Text
    name: Text
    date: str
    build: Build
    golden: Hop | None
    ledger: Ledger
    accuracy: Accuracy | None
    timing: dict[str, Timing]
    around: Around
    speedups: dict[str, Times]
    drift: Drift
    layers: list[LayerTime]
    threads: Annotated[int, Meta(ge=1, le=limits.THREADS)] | None
    machine: Machine
    versions: dict[str, str | None]
    verdict: VerdictFacts

    def __post_init__(self) -> None:
        if self.golden is not None and self.golden.passed and self.golden.error is None:
            raise ValueError("golden passed without an error that was measured")
        names = {entry.name for entry in self.ledger.entries}
        if missing := sorted(self.speedups.keys() - names):
            raise ValueError(f"speedups has {missing[0]!r}, which ledger.entries has not")
