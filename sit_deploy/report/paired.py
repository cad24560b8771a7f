"""How far a drop of top-1 may go by chance: the 95 % interval of paired counts, and how many images would narrow it."""

from __future__ import annotations

import math
from typing import Protocol

from sit_deploy.report.reasons import Weight


class Paired(Protocol):
    """Images that two sides were compared on; lost, gained: those that only the first, and only the second, is right on."""

    @property
    def images(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def gained(self) -> int: ...


def paired_drop(counts: Paired) -> float:
    """Return how much the second side's top-1 is below the first's, in points."""
    return 100 * (counts.lost - counts.gained) / counts.images


def interval_half(counts: Paired) -> float:
    """Return half of the 95 % interval of a drop, in points: normal approximation."""
    n, lost, gained = counts.images, counts.lost, counts.gained
    # one image more on each side: with none lost and none gained the plain formula would claim certainty
    spread = lost + gained + 2 - (lost - gained) ** 2 / n
    return 100 * 1.96 * math.sqrt(max(spread, 0)) / n


def largest_drop(counts: Paired) -> float:
    """Return the upper end of the 95 % interval of the drop of top-1, in points; of an image or two the approximation is beyond all of them."""
    return min(100.0, paired_drop(counts) + interval_half(counts))


def weigh_drop(counts: Paired, drop: float, limit: float) -> Weight:
    """Return what a measured drop says of a limit: it breaks it, may break it on other images, or keeps it.

    Args:
        counts: of the images that it was measured on.
        drop: in points, as recorded; NaN breaks every limit.
        limit: in points.
    """
    if not drop <= limit:
        return Weight.AGAINST
    return Weight.MISSING if largest_drop(counts) > limit else Weight.FAVOUR


def images_needed(counts: Paired, limit: float) -> int | None:
    """Return how many images would show that the drop keeps a limit, if it goes on as on these; None if none would.

    Solves `largest_drop` for its number of images with the shares of lost and gained ones as they are; rounded up to two
    digits.
    """
    n, lost, gained = counts.images, counts.lost, counts.gained
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
