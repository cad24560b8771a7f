"""Ship it or not: what the evidence of a bundle comes to, in plain words.

The whole chain that was measured is judged: the teacher, the student against it, and the engine against the student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sit_deploy.measure.chance import by_chance, doubts
from sit_deploy.measure.speed import NOT_NOW, REMEDY, of_build, rounds, sentence

SHIP, UNSURE, DO_NOT = "ship", "not enough evidence", "do not ship"
MAX_DROP = 1.0  # points of top-1 that an engine may lose, where nobody says otherwise
MAX_STUDENT_DROP = 3.0  # that a student may lose against its teacher: the published ones lose up to 1.9
# Logits as near as this are the same but for the rounding of float32, which gives 105 to 135 dB (16 bits give 70 at most): no image tells the two apart.
EQUAL_DB, EQUAL_COSINE = 90.0, 1 - 1e-8

_HEADLINES = {
    SHIP: "Ship it.",
    UNSURE: "Not enough evidence to ship it.",
    DO_NOT: "Do not ship it.",
}


@dataclass(frozen=True)
class Verdict:
    """What a bundle's evidence comes to.

    Attributes:
        outcome: one of `SHIP`, `UNSURE`, `DO_NOT`.
        against: sentences that say why, gravest first.
        missing: likewise.
        favour: likewise.
        unmeasured: what of its speed cannot be told now, which says nothing of the engine and breaks no limit.
    """

    outcome: str
    against: tuple[str, ...]
    missing: tuple[str, ...]
    favour: tuple[str, ...]
    unmeasured: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        if self.outcome == SHIP and self.unmeasured:
            return f"Ship it, as far as accuracy goes: its speed is {NOT_NOW}."
        return _HEADLINES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "headline": self.headline}


@dataclass
class _Reasons:
    against: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    favour: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)


def largest_drop(accuracy: Mapping[str, Any]) -> float:
    """Return the upper end of the 95 % interval of the drop of top-1, in points: of paired counts, normal approximation."""
    return _drop(accuracy) + _half(accuracy)


def images_needed(accuracy: Mapping[str, Any], limit: float) -> int | None:
    """Return how many images would show that the drop keeps a limit, if it goes on as on these; None if none would.

    Solves `largest_drop` for its number of images with the shares of lost and gained ones as they are; rounded up to two
    digits.
    """
    n, lost, gained = (accuracy[key] for key in ("images", "lost", "gained"))
    drop = (lost - gained) / n
    margin = limit / 100 - drop
    if margin <= 0:
        return None
    spread = (lost + gained) / n - drop**2
    squared = 1.96**2
    count = squared * spread + math.sqrt((squared * spread) ** 2 + 8 * squared * margin**2)
    count = math.ceil(count / (2 * margin**2))
    unit = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit


def judge(
    evidence: Mapping[str, Any],
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_student_drop: float | None = None,
) -> Verdict:
    """Judge one bundle by its evidence (`evidence.gather`).

    Args:
        evidence: of the bundle.
        max_drop: points of top-1 that the engine may lose against the student, `MAX_DROP` by default.
        min_agreement: percent.
        max_student_drop: points that the student may lose against its teacher, `MAX_STUDENT_DROP` by default.
    """
    why = _Reasons()
    _judge_build(evidence, why)
    accuracy = evidence["accuracy"]
    if accuracy is None:
        why.missing.append("Its accuracy was not measured: give labelled images with --data.")
    else:
        _judge_what_was_measured(accuracy, why)
        if accuracy.get("teacher"):
            _judge_student(accuracy, MAX_STUDENT_DROP if max_student_drop is None else max_student_drop, why)
        _judge_accuracy(accuracy, MAX_DROP if max_drop is None else max_drop, min_agreement, why)
    _judge_speed(evidence, why)
    # without being faster 8 bits are worth nothing, and a float engine is its graph
    unsure = why.missing or (why.unmeasured and _doubtful(_eight_bits_speed(evidence)))
    outcome = DO_NOT if why.against else UNSURE if unsure else SHIP
    return Verdict(outcome, tuple(why.against), tuple(why.missing), tuple(why.favour), tuple(why.unmeasured))


def _judge_build(evidence: Mapping[str, Any], why: _Reasons) -> None:
    build, golden = evidence["build"], evidence["golden"]
    for hop in build["hops"]:
        if not hop["passed"]:
            why.against.append(f"When it was built, {hop['name']} was out of tolerance.")
    if build["weights"]["source"] == "random":
        why.against.append("Its weights are random: it classifies nothing.")
    if golden is None:
        why.missing.append(
            f"The {build['engine']['kind']} engine did not run on this machine, which has no GPU for it."
        )
    elif golden["passed"]:
        error = "to the bit" if golden["error"] == 0 else f"within {golden['error']:.1e} of their spread"
        why.favour.append(
            f"The engine gives the reference's golden outputs here {error} (allowed {golden['tolerance']:g})."
        )
    else:
        why.against.append("The engine does not give the reference's golden outputs on this machine.")


def _judge_what_was_measured(accuracy: Mapping[str, Any], why: _Reasons) -> None:
    """Say what makes the figures worthless: a model at chance, images that tell nothing, a reference in doubt."""
    found = doubts(accuracy)
    teacher = accuracy.get("teacher")
    if teacher and accuracy["classes"]:
        low = teacher["top1_interval"][0]
        found += filter(None, [by_chance("the teacher itself", teacher["top1"], low, accuracy)])
    for doubt in found:
        (why.against if doubt.grave else why.missing).append(_whole(doubt.text))
    if warning := accuracy.get("warning"):
        why.missing.append(_whole(warning))


def _judge_student(accuracy: Mapping[str, Any], limit: float, why: _Reasons) -> None:
    teacher = accuracy["teacher"]
    figures = (
        f"the student's top-1 {_change(teacher['drop'])} against its teacher's, from {teacher['top1']:.2f} to "
        f"{accuracy['reference_top1']:.2f} %, on {teacher['images']} images"
    )
    # few images do not decide: what chance may explain asks for more of them
    if _drop(teacher) - _half(teacher) > limit or not math.isfinite(teacher["drop"]):
        why.against.append(_whole(f"{figures}; {limit:g} may be lost (--max-student-drop)"))
    elif largest_drop(teacher) > limit:
        why.missing.append(_whole(f"{figures}; {_by_chance(teacher, limit)} (--max-student-drop)"))
    else:
        why.favour.append(_whole(f"{figures}, where {limit:g} may be lost"))


def _judge_accuracy(
    accuracy: Mapping[str, Any], limit: float, min_agreement: float | None, why: _Reasons
) -> None:
    drop = accuracy["drop"]
    figures = (
        f"top-1 {_change(drop)}, from {accuracy['reference_top1']:.2f} to {accuracy['engine_top1']:.2f} %, on "
        f"{_images(accuracy)}"
    )
    if equal_logits(accuracy):
        near = (
            "to the bit"
            if accuracy["sqnr_db"] is None
            else f"but for float rounding ({accuracy['sqnr_db']:.0f} dB)"
        )
        why.favour.append(
            f"The engine's logits are the student's {near} on all {_images(accuracy)}: top-1 stays at "
            f"{accuracy['reference_top1']:.2f} %."
        )
    elif not drop <= limit:
        why.against.append(_whole(f"{figures}; {limit:g} may be lost"))
    elif largest_drop(accuracy) > limit:
        why.missing.append(_whole(f"{figures}; {_by_chance(accuracy, limit)}"))
    else:
        why.favour.append(_whole(f"{figures}, where {limit:g} may be lost"))
    if min_agreement is not None and not accuracy["agreement"] >= min_agreement:
        why.against.append(
            f"Engine and reference agree on {accuracy['agreement']:.2f} % of the images; {min_agreement:g} is asked for."
        )


def equal_logits(accuracy: Mapping[str, Any]) -> bool:
    """Return whether both sides' logits are the same but for float rounding: then no image is needed to compare them.

    Logits that are all equal or all alike prove nothing (`chance.doubts` says so).
    """
    if accuracy["agreement"] < 100 or accuracy["lost"] + accuracy["gained"] or accuracy.get("alike"):
        return False
    if not accuracy.get("classes") or accuracy["ties"] > accuracy["images"] / 2:
        return False
    noise = accuracy["sqnr_db"]
    return accuracy["lowest_cosine"] >= EQUAL_COSINE and (noise is None or noise >= EQUAL_DB)


def _eight_bits_speed(evidence: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how much faster 8 bits are, measured here where that can be, else as the build found; None without 8 bits."""
    build = evidence["build"]
    found = build["quantization"]
    if not found or not found["speed"]:
        return None
    # the same two on the same runtime, on this machine
    onnxruntime = build["engine"]["kind"] == "onnxruntime"
    now = evidence["speedups"].get(f"ONNX {found['speed']['over']}") if onnxruntime else None
    return now if now and not now["doubt"] else of_build(found["speed"])


def _judge_speed(evidence: Mapping[str, Any], why: _Reasons) -> None:
    build, speedups = evidence["build"], evidence["speedups"]
    precision, found = build["precision"], build["quantization"]
    if speed := found and found["speed"]:
        over, told = speed["over"], _eight_bits_speed(evidence)
        batch = speed["batch_size"]
        if told["doubt"]:
            why.unmeasured.append(_whole(f"{sentence(precision, over, told)} (at batch {batch})"))
        elif told["median"] <= 1:
            why.against.append(
                f"{precision} is not faster than {over} on this engine ({told['median']:.2f}×): build without 8 bits."
            )
        else:
            why.favour.append(
                f"{precision} is {told['median']:.2f}× as fast as {over} at batch {batch} ({rounds(told)})."
            )
    if told := speedups.get("student"):
        _judge_gain("the engine", "the same model in PyTorch", told, why)
    if told := speedups.get("teacher engine"):
        entries = evidence["ledger"]["entries"]
        macs = {entry["name"]: entry["macs"] for entry in entries}
        fewer = f"; its teacher has {macs['teacher engine'] / entries[-1]['macs']:.2f}× the MACs"
        _judge_gain("the engine", "its teacher on the same engine", told, why, fewer)
    elif told := speedups.get("teacher"):
        _judge_gain("the engine", "its teacher in PyTorch", told, why)


def _doubtful(told: Mapping[str, Any] | None) -> bool:
    return told is not None and told["doubt"] is not None


def _judge_gain(subject: str, other: str, told: Mapping[str, Any], why: _Reasons, more: str = "") -> None:
    words = _whole(sentence(subject, other, told, REMEDY) + more)
    if told["doubt"]:
        why.unmeasured.append(words)
    elif told["median"] <= 1:
        why.against.append(_whole(f"{words.removesuffix('.')}: it gains nothing over that"))
    else:
        why.favour.append(words)


def _images(accuracy: Mapping[str, Any]) -> str:
    """Return "108 images", with the classes that they are of where some have none."""
    some = 0 < accuracy.get("present", 0) < accuracy["classes"]
    of = f" of {accuracy['present']} of the {accuracy['classes']} classes" if some else ""
    return f"{accuracy['images']} images{of}"


def _change(drop: float) -> str:
    if not drop:
        return "does not fall"
    return f"falls by {drop:.2f} points" if drop > 0 else f"rises by {-drop:.2f}"


def _by_chance(counts: Mapping[str, Any], limit: float) -> str:
    """Say that a limit may be broken by chance, and how many images would show that it is not."""
    needed = images_needed(counts, limit)
    more = f"about {needed} images like these would tell" if needed else "it is at the limit, or beyond"
    return f"by chance it could be {largest_drop(counts):.2f}, and {limit:g} may be lost: measure on more images; {more}"


def _drop(counts: Mapping[str, Any]) -> float:
    return 100 * (counts["lost"] - counts["gained"]) / counts["images"]


def _half(counts: Mapping[str, Any]) -> float:
    """Half of the 95 % interval of a drop, in points."""
    n, lost, gained = counts["images"], counts["lost"], counts["gained"]
    # one image more on each side: with none lost and none gained the plain formula would claim certainty
    spread = lost + gained + 2 - (lost - gained) ** 2 / n
    return 100 * 1.96 * math.sqrt(max(spread, 0)) / n


def _whole(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
