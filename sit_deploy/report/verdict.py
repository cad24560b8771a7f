"""Ship it or not: what the evidence of a bundle comes to, as an outcome with its reasons.

The whole chain that was measured is judged: the teacher, the student against it, and the engine against the student; of a bundle that gives
embeddings, by `embedding_verdict`. What a reason weighs and what it is about are values; its sentence is written by `verdict_text`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from engines.speedup import Speedup
from sit_deploy.errors import GateError
from sit_deploy.measure.chance import by_chance, doubts
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.report import elsewhere_text, verdict_text
from sit_deploy.report.build_types import AccuracyRecord, HopRecord, TeacherRecord
from sit_deploy.report.check_record import ElsewhereRecord
from sit_deploy.report.embedding_verdict import EQUAL_COSINE, judge_embedding
from sit_deploy.report.kernels_text import lacking_text
from sit_deploy.report.paired import interval_half, largest_drop, paired_drop, weigh_drop
from sit_deploy.report.reasons import (
    MAX_DROP,
    MAX_STUDENT_DROP,
    Limits,
    Outcome,
    Reason,
    Reasons,
    Severity,
    Topic,
    Weight,
)
from sit_deploy.report.types import Evidence, SpeedupRecord, Stage

# Logits as near as this are the same but for the rounding of float32, which gives 105 to 135 dB (16 bits give 70 at most): no image tells the two apart.
EQUAL_DB = 90.0  # beside a cosine of `EQUAL_COSINE`


@dataclass(frozen=True)
class Verdict:
    """What a bundle comes to.

    Attributes:
        reasons: gravest first within a weight.
    """

    reasons: tuple[Reason, ...]

    def of_weight(self, weight: Weight) -> tuple[Reason, ...]:
        """Return the reasons of a weight."""
        return tuple(reason for reason in self.reasons if reason.weight is weight)

    @property
    def outcome(self) -> Outcome:
        if self.of_weight(Weight.AGAINST):
            return Outcome.DO_NOT_SHIP
        # without being faster 8 bits are worth nothing, and a float engine is its graph
        unmeasured = (reason.topic for reason in self.of_weight(Weight.UNMEASURED))
        if self.of_weight(Weight.MISSING) or Topic.EIGHT_BITS in unmeasured:
            return Outcome.UNSURE
        return Outcome.SHIP

    @property
    def speed_is_known(self) -> bool:
        """Whether nothing of its speed is left unmeasured."""
        return not self.of_weight(Weight.UNMEASURED)

    @property
    def severity(self) -> Severity:
        if self.outcome is Outcome.SHIP:
            return Severity.GOOD if self.speed_is_known else Severity.UNSURE
        return Severity.BAD if self.outcome is Outcome.DO_NOT_SHIP else Severity.UNSURE

    @property
    def headline(self) -> str:
        if self.outcome is Outcome.SHIP and not self.speed_is_known:
            return verdict_text.ACCURACY_ALONE
        return _HEADLINES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: the outcome, the sentences by what they weigh, and the headline."""
        order = (Weight.AGAINST, Weight.MISSING, Weight.FAVOUR, Weight.UNMEASURED)
        texts = {weight.value: [reason.text for reason in self.of_weight(weight)] for weight in order}
        return {"outcome": self.outcome.value, **texts, "headline": self.headline}


_HEADLINES = {
    Outcome.SHIP: "Ship it.",
    Outcome.UNSURE: "Not enough evidence to ship it.",
    Outcome.DO_NOT_SHIP: "Do not ship it.",
}


@dataclass(frozen=True)
class JudgedBundle:
    """Evidence of a bundle, and what it comes to."""

    evidence: Evidence
    verdict: Verdict

    def require(self) -> None:
        """Hold the bundle to the limits that it was judged by.

        Raises:
            GateError: something speaks against it, or too little for it: what 8 bits gain must have been measurable. Another
                speed that is not measurable here now breaks no limit.
        """
        weights = (Weight.AGAINST, Weight.MISSING, Weight.UNMEASURED)
        why = [reason for weight in weights for reason in self.verdict.of_weight(weight)]
        if self.verdict.outcome is not Outcome.SHIP:
            raise GateError(f"{self.evidence.name}: {self.verdict.outcome.value}: {why[0].text}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `read_evidence` takes."""
        return {**self.evidence.to_dict(), "verdict": self.verdict.to_dict()}


@dataclass(frozen=True)
class BuildVerdict:
    """What the comparisons of a build come to.

    Attributes:
        compared: how many steps were.
        skipped: names of those that were not run.
        passed: whether none is out of tolerance.
    """

    compared: int
    skipped: tuple[str, ...]
    passed: bool

    @classmethod
    def of(cls, hops: Iterable[HopRecord]) -> BuildVerdict:
        hops = tuple(hops)
        compared = [hop for hop in hops if hop.compared]
        skipped = tuple(hop.name for hop in hops if not hop.compared)
        return cls(len(compared), skipped, all(hop.passed for hop in compared))

    @property
    def severity(self) -> Severity:
        return Severity.GOOD if self.passed else Severity.BAD

    @property
    def headline(self) -> str:
        return verdict_text.build(self.compared, self.skipped, self.passed)


def judge(evidence: Evidence, limits: Limits | None = None) -> Verdict:
    """Judge one bundle by its evidence."""
    limits, why = limits or Limits(), Reasons()
    _judge_build(evidence, why)
    accuracy = evidence.accuracy
    if evidence.embedding is not None:
        judge_embedding(evidence.embedding, evidence.build.precision, limits, why)
    elif accuracy is None:
        why.add(Weight.MISSING, Topic.ACCURACY, verdict_text.NO_ACCURACY)
    else:
        _judge_basis(accuracy, why)
        if accuracy.teacher:
            limit = MAX_STUDENT_DROP if limits.max_student_drop is None else limits.max_student_drop
            _judge_student(accuracy, accuracy.teacher, limit, why)
        _judge_accuracy(accuracy, MAX_DROP if limits.max_drop is None else limits.max_drop, why)
        if limits.min_agreement is not None and not accuracy.agreement >= limits.min_agreement:
            text = verdict_text.agreement(accuracy, limits.min_agreement)
            why.add(Weight.AGAINST, Topic.AGREEMENT, text)
    if limits.max_student_drop is not None and not (accuracy and accuracy.teacher):
        why.add(Weight.MISSING, Topic.STUDENT, verdict_text.NO_TEACHER)
    _judge_kernels(evidence, why)
    _judge_speed(evidence, why)
    return Verdict(tuple(why.all))


def _judge_build(evidence: Evidence, why: Reasons) -> None:
    build, golden = evidence.build, evidence.golden
    for hop in build.hops:
        if not hop.passed:
            why.add(Weight.AGAINST, Topic.BUILD, verdict_text.out_of_tolerance(hop))
    if build.weights.is_random:
        why.add(Weight.AGAINST, Topic.WEIGHTS, verdict_text.RANDOM_WEIGHTS)
    if golden is not None:
        weight = Weight.FAVOUR if golden.passed else Weight.AGAINST
        why.add(weight, Topic.GOLDEN, verdict_text.golden(golden))
    elif not any(_ran(row) for row in evidence.elsewhere):
        why.add(Weight.MISSING, Topic.GOLDEN, verdict_text.did_not_run(build.engine.kind))
    for row in evidence.elsewhere:
        if row.bundle.golden is not None:
            weight = Weight.FAVOUR if row.bundle.golden.passed else Weight.AGAINST
            why.add(weight, Topic.GOLDEN, elsewhere_text.golden(row))


def _ran(row: ElsewhereRecord) -> bool:
    """Whether the bundle's own engine ran there; one that was built there says nothing of it."""
    return row.bundle.golden is not None and not row.bundle.engine.built_here


def _judge_basis(accuracy: AccuracyRecord, why: Reasons) -> None:
    """Say what makes the figures worthless: a model at chance, images that tell nothing, a reference in doubt."""
    doubted, teacher = doubts(accuracy), accuracy.teacher
    if teacher and accuracy.classes:
        low = teacher.top1_interval[0]
        doubted += filter(None, [by_chance("the teacher itself", teacher.top1, low, accuracy)])
    for doubt in doubted:
        why.add(
            Weight.AGAINST if doubt.grave else Weight.MISSING, Topic.BASIS, verdict_text.sentence(doubt.text)
        )
    if accuracy.warning:
        why.add(Weight.MISSING, Topic.BASIS, verdict_text.sentence(accuracy.warning))


def _judge_student(accuracy: AccuracyRecord, teacher: TeacherRecord, limit: float, why: Reasons) -> None:
    # few images do not decide: what chance may explain asks for more of them
    if paired_drop(teacher) - interval_half(teacher) > limit or not math.isfinite(teacher.drop):
        weight = Weight.AGAINST
    elif largest_drop(teacher) > limit:
        weight = Weight.MISSING
    else:
        weight = Weight.FAVOUR
    what = verdict_text.student_drop(accuracy, teacher)
    why.add(weight, Topic.STUDENT, verdict_text.of_drop(weight, what, teacher, limit, "--max-student-drop"))


def _judge_accuracy(accuracy: AccuracyRecord, limit: float, why: Reasons) -> None:
    if equal_logits(accuracy):
        why.add(Weight.FAVOUR, Topic.ACCURACY, verdict_text.equal_logits(accuracy))
        return
    weight = weigh_drop(accuracy, accuracy.drop, limit)
    text = verdict_text.of_drop(weight, verdict_text.engine_drop(accuracy), accuracy, limit)
    why.add(weight, Topic.ACCURACY, text)


def equal_logits(accuracy: AccuracyRecord) -> bool:
    """Return whether both sides' logits are the same but for float rounding: then no image is needed to compare them.

    Logits that are all equal or all alike prove nothing (`chance.doubts` says so).
    """
    if accuracy.agreement < 100 or accuracy.lost + accuracy.gained or accuracy.alike:
        return False
    if not accuracy.classes or accuracy.ties > accuracy.images / 2:
        return False
    noise = accuracy.sqnr_db
    return accuracy.lowest_cosine >= EQUAL_COSINE and (noise is None or noise >= EQUAL_DB)


class _Timed(Protocol):
    """A speed-up with its doubt."""

    @property
    def median(self) -> float | None: ...
    @property
    def doubt(self) -> str | None: ...


def _judge_kernels(evidence: Evidence, why: Reasons) -> None:
    """Say where the engine multiplies in more bits than was asked for; of 8 bits that were measured to gain, only what they gain."""
    build = evidence.build
    lacking = lacking_text(build.engine.details, build.precision)
    measured = build.quantization and build.quantization.speed
    if lacking and not (measured and _weight(_eight_bits_gain(evidence)) is Weight.FAVOUR):
        why.add(Weight.AGAINST, Topic.KERNELS, verdict_text.sentence(lacking))


def _judge_speed(evidence: Evidence, why: Reasons) -> None:
    quantization, speedups = evidence.build.quantization, evidence.speedups
    if quantization and quantization.speed:
        speed, low = quantization.speed, _eight_bits_gain(evidence)
        text = verdict_text.eight_bits(evidence.build.precision, speed.over, low, speed.batch_size)
        why.add(_weight(low), Topic.EIGHT_BITS, text)
    if evidence.build.precision in EIGHT_BITS:
        _judge_eight_bits_elsewhere(evidence, why)
    if gain := speedups.get(Stage.STUDENT.value):
        why.add(_weight(gain), Topic.SPEED, verdict_text.gain(gain, "the same model in PyTorch"))
    if gain := speedups.get(Stage.TEACHER_ENGINE.value):
        teacher = evidence.ledger.find(Stage.TEACHER_ENGINE)
        ratio = teacher.macs / evidence.ledger.engine_stage.macs
        why.add(_weight(gain), Topic.SPEED, verdict_text.gain_over_teacher(gain, ratio))
    elif gain := speedups.get(Stage.TEACHER.value):
        why.add(_weight(gain), Topic.SPEED, verdict_text.gain(gain, "its teacher in PyTorch"))


def _judge_eight_bits_elsewhere(evidence: Evidence, why: Reasons) -> None:
    """Judge what 8 bits gained where check.py ran; where nothing tells, that is missing."""
    precision, quantization = evidence.build.precision, evidence.build.quantization
    known = quantization is not None and quantization.speed is not None
    for row in filter(_ran, evidence.elsewhere):
        for over in row.over:
            known = True
            text = verdict_text.eight_bits(precision, over.precision, over.speedup, over.batch_size)
            why.add(_weight(over.speedup), Topic.EIGHT_BITS, f"On {elsewhere_text.machine_name(row)}: {text}")
    if evidence.elsewhere and not known:
        why.add(Weight.MISSING, Topic.EIGHT_BITS, elsewhere_text.eight_bits_unknown(precision))


def _weight(gain: _Timed) -> Weight:
    """Return what a speed-up weighs."""
    if gain.doubt is not None or gain.median is None:
        return Weight.UNMEASURED
    return Weight.FAVOUR if gain.median > 1 else Weight.AGAINST


def _eight_bits_gain(evidence: Evidence) -> Speedup | SpeedupRecord:
    """Return how much faster 8 bits are, measured here where that can be, else as the build measured it."""
    build = evidence.build
    assert build.quantization and build.quantization.speed
    speed = build.quantization.speed
    # the same two on the same runtime, on this machine
    onnxruntime = build.engine.kind == "onnxruntime"
    now = evidence.speedups.get(Stage.of_graph(speed.over)) if onnxruntime else None
    return now if now and now.doubt is None else speed.speedup()
