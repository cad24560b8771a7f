"""Does a measured accuracy say anything, or does it hold by construction?

An engine that equals a model at chance loses nothing, and where all images get one class, or are one picture, two sides agree
whatever they are. Such figures look like any others, so the doubts go with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

NEAR = 0.1  # share of the way from guessing to perfection that a model must have gone
_TIES = 0.05  # share of the images whose class may be decided by the order of equal logits


class Figures(Protocol):
    """What a measured accuracy rests on, as `sit_deploy.measure.accuracy.Accuracy` has it."""

    @property
    def images(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def present(self) -> int: ...
    @property
    def majority(self) -> float: ...
    @property
    def ties(self) -> int: ...
    @property
    def alike(self) -> bool: ...
    @property
    def reference_classes(self) -> int: ...
    @property
    def engine_classes(self) -> int: ...
    @property
    def reference_top1(self) -> float: ...
    @property
    def engine_top1(self) -> float: ...
    @property
    def reference_top1_interval(self) -> tuple[float, float]: ...
    @property
    def engine_top1_interval(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class FigureDoubt:
    """Why a measured accuracy is worth less than it seems.

    Attributes:
        text: a sentence without capital and full stop.
        grave: it speaks against what was measured, and does not only ask for more.
        stops: the figures hold by construction, so that no limit can be said to be kept.
    """

    text: str
    grave: bool
    stops: bool


def guessing(accuracy: Figures) -> tuple[float, str]:
    """Return the top-1 in percent that needs no look at the images, and how it is got."""
    by_luck, always = 100 / accuracy.classes, accuracy.majority
    if accuracy.present > 1 and always > by_luck:
        return always, "always giving the commonest class"
    return by_luck, f"guessing among {accuracy.classes} classes"


def by_chance(who: str, top1: float, low: float, accuracy: Figures) -> FigureDoubt | None:
    """Say so if a top-1, with the low end of its 95 % interval, is hardly better than guessing."""
    base, how = guessing(accuracy)
    least = base + NEAR * (100 - base)
    if low > least:
        return None
    figures = f"{who} has {top1:.2f} % top-1 on these images, and {how} has {base:.2f} %"
    if top1 <= least:
        return FigureDoubt(
            f"{figures}: that says nothing for it; check weights, labels and preprocessing", True, True
        )
    return FigureDoubt(f"{figures}, which chance alone may explain: measure on more images", False, False)


def doubts(accuracy: Figures, reference: str = "PyTorch", engine: str = "the engine") -> list[FigureDoubt]:
    """Return what makes a measured accuracy worthless, gravest first.

    Args:
        accuracy: what was measured.
        reference: what to call the one side.
        engine: what to call the other.
    """
    if not accuracy.classes:  # of before it was counted
        return []
    images = accuracy.images
    doubted: list[FigureDoubt] = []
    sides = (
        (reference, accuracy.reference_classes, accuracy.reference_top1, accuracy.reference_top1_interval),
        (engine, accuracy.engine_classes, accuracy.engine_top1, accuracy.engine_top1_interval),
    )
    for who, given, top1, interval in sides:
        if given == 1 and images > 1:
            text = f"{who} gives all {images} images one class: both sides agree whatever they are"
            doubted.append(FigureDoubt(text, grave=accuracy.present > 1, stops=True))
        if chance := by_chance(who, top1, interval[0], accuracy):
            doubted.append(chance)
    if accuracy.present == 1 and images > 1:
        doubted.append(
            FigureDoubt("all images are of one class: of the others nothing was measured", False, False)
        )
    if accuracy.alike and images > 1:
        doubted.append(
            FigureDoubt(
                f"all {images} images give the same logits: they are one picture, or the model does not look",
                False,
                True,
            )
        )
    if accuracy.ties > _TIES * images:
        doubted.append(
            FigureDoubt(
                f"for {accuracy.ties} of {images} images several classes have the same highest logit, and the first of "
                "them counts: agreement says little",
                *[accuracy.ties > images / 2] * 2,
            )
        )
    return sorted(doubted, key=lambda doubt: not doubt.grave)
