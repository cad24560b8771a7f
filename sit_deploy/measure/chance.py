"""Does a measured accuracy say anything, or does it hold by construction?

An engine that equals a model at chance loses nothing, and where all images get one class, or are one picture, two sides agree
whatever they are. Such figures look like any others, so the doubts go with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR = 0.1  # share of the way from guessing to perfection that a model must have gone
_TIES = 0.05  # share of the images whose class may be decided by the order of equal logits


@dataclass(frozen=True)
class Reason:
    """Why a measured accuracy is worth less than it seems.

    Attributes:
        text: a sentence without capital and full stop.
        grave: it speaks against what was measured, and does not only ask for more.
        stops: the figures hold by construction, so that no limit can be said to be kept.
    """

    text: str
    grave: bool
    stops: bool


def guessing(found: Mapping[str, Any]) -> tuple[float, str]:
    """Return the top-1 in percent that needs no look at the images, and how it is got."""
    by_luck, always = 100 / found["classes"], found["majority"]
    if found["present"] > 1 and always > by_luck:
        return always, "always giving the commonest class"
    return by_luck, f"guessing among {found['classes']} classes"


def by_chance(who: str, top1: float, low: float, found: Mapping[str, Any]) -> Reason | None:
    """Say so if a top-1, with the low end of its 95 % interval, is hardly better than guessing."""
    base, how = guessing(found)
    least = base + NEAR * (100 - base)
    if low > least:
        return None
    figures = f"{who} has {top1:.2f} % top-1 on these images, and {how} has {base:.2f} %"
    if top1 <= least:
        return Reason(
            f"{figures}: that says nothing for it; check weights, labels and preprocessing", True, True
        )
    return Reason(f"{figures}, which chance alone may explain: measure on more images", False, False)


def doubts(found: Mapping[str, Any], reference: str = "PyTorch", engine: str = "the engine") -> list[Reason]:
    """Return what makes a measured accuracy worthless, gravest first.

    Args:
        found: of `Accuracy.to_dict`.
        reference: what to call it.
        engine: likewise.
    """
    if not found["classes"]:  # of before it was counted
        return []
    images, told = found["images"], []
    for side, who in (("reference", reference), ("engine", engine)):
        if found[f"{side}_classes"] == 1 and images > 1:
            grave = found["present"] > 1
            told.append(
                Reason(
                    f"{who} gives all {images} images one class: both sides agree whatever they are",
                    grave,
                    True,
                )
            )
        chance = by_chance(who, found[f"{side}_top1"], found[f"{side}_top1_interval"][0], found)
        if chance:
            told.append(chance)
    if found["present"] == 1 and images > 1:
        told.append(Reason("all images are of one class: of the others nothing was measured", False, False))
    if found["alike"] and images > 1:
        told.append(
            Reason(
                f"all {images} images give the same logits: they are one picture, or the model does not look",
                False,
                True,
            )
        )
    if found["ties"] > _TIES * images:
        told.append(
            Reason(
                f"for {found['ties']} of {images} images several classes have the same highest logit, and the first of "
                "them counts: agreement says little",
                *[found["ties"] > images / 2] * 2,
            )
        )
    return sorted(told, key=lambda doubt: not doubt.grave)
