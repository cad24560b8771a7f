"""Held-out pictures in several ways where there are few, so that a tenth of a point can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ENOUGH = 1000
TURNS = (0, -6, 6)  # degrees


def shown(samples: Sequence[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Return pictures with their labels, straight and turned either way if there are fewer than ENOUGH."""
    pairs = [samples[i] for i in range(len(samples))]
    turns = TURNS if len(pairs) < ENOUGH else TURNS[:1]
    return [(turned(image, angle), label) for angle in turns for image, label in pairs]


def turned(image: Any, angle: float) -> Any:
    """Return a picture turned by degrees, first enlarged to what can show it."""
    from PIL import Image

    if not angle:
        return image
    return image.resize((112, 112), Image.Resampling.BICUBIC).rotate(angle, Image.Resampling.BICUBIC)
