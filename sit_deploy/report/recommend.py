"""Which of several bundles to take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sit_deploy.report import speedup_text
from sit_deploy.report.types import Evidence, Stage
from sit_deploy.report.verdict import JudgedBundle, Outcome

_SAME = 1.05  # times the fastest: as fast, for a verdict on two that were timed one after the other


class Basis(Enum):
    """What decided, by its name in a report."""

    ONLY = "the only one to be shipped"
    SPEED = "speed"
    ACCURACY = "accuracy"


@dataclass(frozen=True)
class Recommendation:
    """The bundle to take.

    Attributes:
        taken: the bundle.
        basis: what decided.
        shippable: all that may be shipped, in the order given.
    """

    taken: JudgedBundle
    basis: Basis
    shippable: tuple[JudgedBundle, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        evidence = self.taken.evidence
        return {"bundle": evidence.bundle, "name": evidence.name, "basis": self.basis.value}


def recommend(bundles: Sequence[JudgedBundle]) -> Recommendation | None:
    """Return the bundle to take of those that may be shipped, None where none may.

    That is the fastest of them, and of those as fast the most accurate: what each may lose is decided by then. Times of other machines, threads or
    batches do not compare; where there are such, or none, accuracy decides.
    """
    fit = tuple(judged for judged in bundles if judged.verdict.outcome is Outcome.SHIP)
    if not fit:
        return None
    if len(fit) == 1:
        return Recommendation(fit[0], Basis.ONLY, fit)
    if not _comparable([judged.evidence for judged in fit]):
        return Recommendation(max(fit, key=lambda one: _top1(one.evidence)), Basis.ACCURACY, fit)
    fastest = min(image_ms(judged.evidence) or 0.0 for judged in fit)
    near = [judged for judged in fit if (image_ms(judged.evidence) or 0.0) <= _SAME * fastest]
    best = max(near, key=lambda one: (_top1(one.evidence), -(image_ms(one.evidence) or 0.0)))
    return Recommendation(best, Basis.SPEED, fit)


def image_ms(evidence: Evidence) -> float | None:
    """Return the engine's milliseconds of an image, None where it was not timed."""
    latency = evidence.ledger.engine_stage.latency_ms
    return None if latency is None else latency / evidence.ledger.batch_size


def _top1(evidence: Evidence) -> float:
    return evidence.accuracy.engine_top1 if evidence.accuracy else -1.0


def _comparable(rows: Sequence[Evidence]) -> bool:
    """Whether the times of all can be held against one another."""
    where = {(row.machine.cpu_model, row.threads, row.ledger.batch_size) for row in rows}
    return len(where) == 1 and all(is_timed(row) for row in rows)


def is_timed(evidence: Evidence) -> bool:
    """Whether the engine's time says something: it does where the rounds bear out its gain over the student, whatever is doubted of other hops."""
    gain = evidence.speedups.get(Stage.STUDENT.value)
    if gain is None:
        return image_ms(evidence) is not None and speedup_text.time_doubt(evidence.speedups) is None
    return image_ms(evidence) is not None and gain.doubt is None


def headline(found: Recommendation | None, bundles: Sequence[JudgedBundle]) -> str:
    """Say which to take: "Take a.", or that none is to be shipped."""
    if found:
        return f"Take {found.taken.evidence.name}."
    outcomes = {judged.verdict.outcome for judged in bundles}
    if outcomes == {Outcome.DO_NOT_SHIP}:
        return f"Do not ship any of the {len(bundles)} bundles."
    if outcomes == {Outcome.UNSURE}:
        return f"Not enough evidence to ship any of the {len(bundles)} bundles."
    return f"None of the {len(bundles)} bundles is to be shipped yet."


def reason(found: Recommendation | None, bundles: Sequence[JudgedBundle]) -> str:
    """Say in a sentence why, nothing where none is to be shipped."""
    if found is None:
        return ""
    mine, fit = found.taken.evidence, found.shippable
    figures = f"top-1 {_top1(mine):.2f} %"
    if (ms := image_ms(mine)) is not None and is_timed(mine):
        figures += f", {ms:.2f} ms an image"
    if found.basis is Basis.ONLY:
        return f"It is the only one of {len(bundles)} to be shipped: {figures}."
    if found.basis is Basis.ACCURACY:
        return (
            f"It is the most accurate of the {len(fit)} to be shipped: {figures}. Their times were not all measured on one machine in one "
            "batch, or say nothing, and did not decide."
        )
    best = max((judged.evidence for judged in fit), key=_top1)
    fastest = min(image_ms(judged.evidence) or 0.0 for judged in fit)
    way = "the fastest" if ms == fastest else "as fast as the fastest, and the more accurate,"
    more = (
        f"; the most accurate, {best.name}, has {_top1(best):.2f} % and takes {image_ms(best):.2f} ms"
        if _top1(best) > _top1(mine)
        else ", and none of them is more accurate"
    )
    return f"It is {way} of the {len(fit)} to be shipped: {figures}{more}."
