"""How a model's TSMs are fitted to what it computes without them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 120.0
BATCH_SIZE = 64
VIEWS = 4  # of each image: itself, and parts of it
LR = 1e-2
_MOST_HELD_OUT = 500  # images that agreement is measured on


def held_out(images: int) -> int:
    """Return how many of some images are kept apart, to measure agreement on."""
    return max(1, min(_MOST_HELD_OUT, images // 10))


@dataclass(frozen=True)
class FitOptions:
    """How TSMs are fitted.

    Attributes:
        seconds: that it takes at most, features of images included; at least one step is taken.
        steps: to take in place of that, however long they take: the same weights each time.
        batch_size: images a step.
        lr: the largest learning rate, of AdamW without weight decay; it ends at 0 by a cosine.
        seed: of the order of images.
    """

    seconds: float | None = SECONDS
    steps: int | None = None
    batch_size: int = BATCH_SIZE
    lr: float = LR
    seed: int = 0
