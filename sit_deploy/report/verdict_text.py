"""The sentences of a verdict, written from its figures; what they weigh is decided in `verdict`."""

from __future__ import annotations

from collections.abc import Sequence

from sit_deploy.report import speedup_text
from sit_deploy.report.build_types import AccuracyRecord, HopRecord, PairedRecord, TeacherRecord
from sit_deploy.report.paired import images_needed, largest_drop
from sit_deploy.report.reasons import Weight
from sit_deploy.report.speedup_text import SpeedupFigures

ACCURACY_ALONE = f"Ship it, as far as accuracy goes: its speed is {speedup_text.NOT_NOW}."
NO_ACCURACY = "Its accuracy was not measured: give labelled images with --data."
NO_TEACHER = "Its teacher was not measured beside it (--max-student-drop): give it with --teacher, and labelled images with --data."
RANDOM_WEIGHTS = "Its weights are random: what it gives means nothing."


def sentence(text: str) -> str:
    """Return a clause with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def build(compared: int, skipped: Sequence[str], passed: bool) -> str:
    """Return what the comparisons of a build come to."""
    text = f"{compared} hops compared, all within tolerance."
    if not passed:
        text = "A hop is out of tolerance: do not ship this."
    if skipped:
        text += f" Not run on the machine that built it: {', '.join(skipped)}; validate it where a GPU is."
    return text


def out_of_tolerance(hop: HopRecord) -> str:
    """Return that a step of the build was out of tolerance."""
    return sentence(f"when it was built, {hop.name} was out of tolerance")


def did_not_run(kind: str) -> str:
    """Return that the engine could not be run here."""
    return sentence(f"the {kind} engine did not run on this machine, which has no GPU for it")


def golden(hop: HopRecord) -> str:
    """Return what the golden outputs of the engine are on this machine."""
    if not hop.passed:
        return sentence("the engine does not give the reference's golden outputs on this machine")
    error = "to the bit" if hop.error == 0 else f"within {hop.error:.1e} of their spread"
    return sentence(
        f"the engine gives the reference's golden outputs here {error} (allowed {hop.tolerance:g})"
    )


def of_drop(weight: Weight, what: str, counts: PairedRecord, limit: float, option: str = "") -> str:
    """Return what a drop comes to beside what may be lost.

    Args:
        weight: that it has.
        what: it is of, with its figures: `engine_drop`, `student_drop`.
        counts: of the images that it was measured on.
        limit: points that may be lost.
        option: that sets the limit, where it is to be named.
    """
    if weight is Weight.FAVOUR:
        return sentence(f"{what}, where {limit:g} may be lost")
    text = by_chance_words(counts, limit) if weight is Weight.MISSING else f"{limit:g} may be lost"
    return sentence(f"{what}; {text}{f' ({option})' if option else ''}")


def equal_logits(accuracy: AccuracyRecord) -> str:
    """Return that the engine gives the student's logits."""
    noise = accuracy.sqnr_db
    near = "to the bit" if noise is None else f"but for float rounding ({noise:.0f} dB)"
    return sentence(
        f"the engine's logits are the student's {near} on all {_images(accuracy)}: top-1 stays at "
        f"{accuracy.reference_top1:.2f} %"
    )


def agreement(accuracy: AccuracyRecord, limit: float) -> str:
    """Return that too few images get the same class."""
    return sentence(
        f"engine and reference agree on {accuracy.agreement:.2f} % of the images; {limit:g} is asked for"
    )


def eight_bits(precision: str, over: str, gain: SpeedupFigures, batch: int) -> str:
    """Return what 8 bits gain over the precision that they stand in for."""
    if gain.doubt is not None or gain.median is None:
        return sentence(f"{speedup_text.sentence(precision, over, gain)} (at batch {batch})")
    if gain.median <= 1:
        return f"{precision} is not faster than {over} on this engine ({gain.median:.2f}×): build without 8 bits."
    figures = speedup_text.rounds(gain)
    return f"{precision} is {gain.median:.2f}× as fast as {over} at batch {batch} ({figures})."


def gain(speedup: SpeedupFigures, other: str, more: str = "") -> str:
    """Return what the engine gains over another."""
    text = speedup_text.sentence("the engine", other, speedup) + more
    slower = speedup.doubt is None and speedup.median is not None and speedup.median <= 1
    return sentence(f"{text}: it gains nothing over that" if slower else text)


def gain_over_teacher(speedup: SpeedupFigures, macs_ratio: float) -> str:
    """Return what the engine gains over its teacher's engine."""
    more = f"; its teacher has {macs_ratio:.2f}× the MACs"
    return gain(speedup, "its teacher on the same engine", more)


def engine_drop(accuracy: AccuracyRecord) -> str:
    """Return what the engine loses against PyTorch, as a clause."""
    return (
        f"top-1 {change(accuracy.drop)}, from {accuracy.reference_top1:.2f} to {accuracy.engine_top1:.2f} %, on "
        f"{_images(accuracy)}"
    )


def student_drop(accuracy: AccuracyRecord, teacher: TeacherRecord) -> str:
    """Return what the student loses against its teacher, as a clause."""
    return (
        f"the student's top-1 {change(teacher.drop)} against its teacher's, from {teacher.top1:.2f} to "
        f"{accuracy.reference_top1:.2f} %, on {teacher.images} images"
    )


def _images(accuracy: AccuracyRecord) -> str:
    """Return "108 images", with the classes that they are of where some have none."""
    some = 0 < accuracy.present < accuracy.classes
    of = f" of {accuracy.present} of the {accuracy.classes} classes" if some else ""
    return f"{accuracy.images} images{of}"


def change(drop: float) -> str:
    """Return "falls by 0.50 points"."""
    if not drop:
        return "does not fall"
    return f"falls by {drop:.2f} points" if drop > 0 else f"rises by {-drop:.2f}"


def by_chance_words(counts: PairedRecord, limit: float) -> str:
    """Say that a limit may be broken by chance, and how many images would show that it is not."""
    needed = images_needed(counts, limit)
    more = f"about {needed} images like these would tell" if needed else "it is at the limit, or beyond"
    return f"by chance it could be {largest_drop(counts):.2f}, and {limit:g} may be lost: measure on more images; {more}"
