"""What a verdict is made of: outcomes, reasons with their weights, and the limits that bundles are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_DROP = 1.0  # points of top-1 that an engine may lose, where nobody says otherwise
MAX_STUDENT_DROP = 3.0  # that a student may lose against its teacher: the published ones lose up to 1.9


class Outcome(Enum):
    """What to do with a bundle, by its name in a report."""

    SHIP = "ship"
    UNSURE = "not enough evidence"
    DO_NOT_SHIP = "do not ship"


class Severity(Enum):
    """How an outcome or a reason is to be taken."""

    GOOD = "good"
    UNSURE = "unsure"
    BAD = "bad"


class Weight(Enum):
    """What a reason does to the verdict, by its name in a report.

    It forbids shipping, asks for more evidence, says that a speed cannot be told now (which breaks no limit), or is in favour.
    """

    AGAINST = "against"
    MISSING = "missing"
    UNMEASURED = "unmeasured"
    FAVOUR = "favour"

    @property
    def severity(self) -> Severity:
        return {Weight.AGAINST: Severity.BAD, Weight.FAVOUR: Severity.GOOD}.get(self, Severity.UNSURE)


class Topic(Enum):
    """What a reason is about."""

    BUILD = "a step of the build"
    WEIGHTS = "where the weights come from"
    GOLDEN = "the golden outputs on this machine"
    BASIS = "whether the figures say anything"
    STUDENT = "top-1 against the teacher"
    ACCURACY = "top-1 against PyTorch"
    NEIGHBOURS = "nearest neighbours against PyTorch"
    COSINE = "directions of vectors against PyTorch"
    AGREEMENT = "classes against PyTorch"
    EIGHT_BITS = "what 8 bits gain"
    KERNELS = "the precision of its kernels"
    SPEED = "speed against PyTorch or the teacher"


@dataclass(frozen=True)
class Reason:
    """Why a bundle is to be shipped or not.

    Attributes:
        weight: what it does to the verdict.
        topic: what it is about.
        text: the whole sentence.
    """

    weight: Weight
    topic: Topic
    text: str


@dataclass(frozen=True)
class Limits:
    """What may be lost; None where nobody set a limit.

    Attributes:
        max_drop: points of top-1 that the engine may lose against the student, `MAX_DROP` by default.
        min_agreement: percent of the images that must get the same class.
        max_student_drop: points that the student may lose against its teacher, `MAX_STUDENT_DROP` by default.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    max_student_drop: float | None = None

    @property
    def given(self) -> bool:
        """Whether anybody set one."""
        return (self.max_drop, self.min_agreement, self.max_student_drop) != (None, None, None)


class Reasons:
    """The reasons as they come up."""

    def __init__(self) -> None:
        self.all: list[Reason] = []

    def add(self, weight: Weight, topic: Topic, text: str) -> None:
        self.all.append(Reason(weight, topic, text))
