"""Ship it or not: what the evidence of a bundle comes to, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHIP, UNSURE, DO_NOT = "ship", "not enough evidence", "do not ship"
MAX_DROP = 1.0  # points of top-1 that an engine may lose, where nobody says otherwise

_HEADLINES = {
    SHIP: "Ship it.",
    UNSURE: "Not enough evidence to ship it.",
    DO_NOT: "Do not ship it.",
}


@dataclass(frozen=True)
class Verdict:
    """outcome: one of `SHIP`, `UNSURE`, `DO_NOT`. against, missing, favour: sentences that say why, gravest first."""

    outcome: str
    against: tuple[str, ...]
    missing: tuple[str, ...]
    favour: tuple[str, ...]

    @property
    def headline(self) -> str:
        return _HEADLINES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "headline": self.headline}


def largest_drop(accuracy: Mapping[str, Any]) -> float:
    """Return the upper end of the 95 % interval of the drop of top-1, in points: of paired counts, normal approximation."""
    n, lost, gained = accuracy["images"], accuracy["lost"], accuracy["gained"]
    # one image more on each side: with none lost and none gained the plain formula would claim certainty
    spread = lost + gained + 2 - (lost - gained) ** 2 / n
    return 100 * ((lost - gained) / n + 1.96 * math.sqrt(max(spread, 0)) / n)


def judge(
    evidence: Mapping[str, Any], max_drop: float | None = None, min_agreement: float | None = None
) -> Verdict:
    """Judge one bundle by its evidence (`evidence.gather`).

    Args:
        max_drop: points of top-1 that it may lose, `MAX_DROP` by default. min_agreement: percent.
    """
    limit = MAX_DROP if max_drop is None else max_drop
    against, missing, favour = [], [], []
    _judge_build(evidence, against, missing, favour)
    accuracy = evidence["accuracy"]
    if accuracy is None:
        missing.append("Its accuracy was not measured: give labelled images with --data.")
    else:
        _judge_accuracy(accuracy, limit, min_agreement, against, missing, favour)
    _judge_speed(evidence, against, favour)
    outcome = DO_NOT if against else UNSURE if missing else SHIP
    return Verdict(outcome, tuple(against), tuple(missing), tuple(favour))


def _judge_build(
    evidence: Mapping[str, Any], against: list[str], missing: list[str], favour: list[str]
) -> None:
    build, golden = evidence["build"], evidence["golden"]
    for hop in build["hops"]:
        if not hop["passed"]:
            against.append(f"When it was built, {hop['name']} was out of tolerance.")
    if build["weights"]["source"] == "random":
        against.append("Its weights are random: it classifies nothing.")
    if golden is None:
        missing.append(
            f"The {build['engine']['kind']} engine did not run on this machine, which has no GPU for it."
        )
    elif golden["passed"]:
        error = "to the bit" if golden["error"] == 0 else f"within {golden['error']:.1e} of their spread"
        favour.append(
            f"The engine gives the reference's golden outputs here {error} (allowed {golden['tolerance']:g})."
        )
    else:
        against.append("The engine does not give the reference's golden outputs on this machine.")


def _judge_accuracy(
    accuracy: Mapping[str, Any],
    limit: float,
    min_agreement: float | None,
    against: list[str],
    missing: list[str],
    favour: list[str],
) -> None:
    drop, images = accuracy["drop"], accuracy["images"]
    change = (
        f"falls by {drop:.2f} points"
        if drop > 0
        else "does not fall"
        if drop == 0
        else f"rises by {-drop:.2f}"
    )
    figures = f"top-1 {change}, from {accuracy['reference_top1']:.2f} to {accuracy['engine_top1']:.2f} %, on {images} images"
    if not drop <= limit:
        against.append(f"{figures[0].upper()}{figures[1:]}; {limit:g} may be lost.")
    elif largest_drop(accuracy) > limit:
        missing.append(
            f"{figures[0].upper()}{figures[1:]}; by chance it could be {largest_drop(accuracy):.2f}, and {limit:g} may be "
            "lost: measure on more images."
        )
    else:
        favour.append(f"{figures[0].upper()}{figures[1:]}, where {limit:g} may be lost.")
    if min_agreement is not None and not accuracy["agreement"] >= min_agreement:
        against.append(
            f"Engine and reference agree on {accuracy['agreement']:.2f} % of the images; {min_agreement:g} is asked for."
        )
    if accuracy["warning"]:
        warning = accuracy["warning"]
        missing.append(f"{warning[0].upper()}{warning[1:]}.")


def _judge_speed(evidence: Mapping[str, Any], against: list[str], favour: list[str]) -> None:
    precision = evidence["build"]["precision"]
    found = evidence["build"]["quantization"]
    speed = found and found["speed"]
    if speed and speed["ratio"] <= 1:
        against.append(
            f"{precision} is not faster than {speed['over']} on this engine ({speed['ratio']:.2f}×): build without 8 bits."
        )
    elif speed:
        favour.append(
            f"{precision} is {speed['ratio']:.2f}× as fast as {speed['over']} at batch {speed['batch_size']}."
        )
    speedups = evidence["speedups"]
    if speedups.get("student"):
        favour.append(f"The engine is {speedups['student']:.2f}× as fast as the same model in PyTorch.")
    if speedups.get("teacher engine"):
        macs = {entry["name"]: entry["macs"] for entry in evidence["ledger"]["entries"]}
        fewer = macs["teacher engine"] / evidence["ledger"]["entries"][-1]["macs"]
        favour.append(
            f"It is {speedups['teacher engine']:.2f}× as fast as its teacher on the same engine, at {fewer:.2f}× fewer MACs."
        )
    elif speedups.get("teacher"):
        favour.append(f"It is {speedups['teacher']:.2f}× as fast as its teacher in PyTorch.")
