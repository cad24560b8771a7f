"""Held-out pictures, in several ways where there are few, so that a tenth of a point can be told; and what logits of them are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

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


def accuracy(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1, what of the reference's is lost, and how often both give the same class, in percent and points.

    Args:
        logits: (images, classes), of what is judged.
        reference: the same of FP32.
        labels: int (images,).
    """
    top, reference_top = logits.argmax(1), reference.argmax(1)
    top1 = 100 * float((top == labels).mean())
    return {
        "top1": top1,
        "drop": 100 * float((reference_top == labels).mean()) - top1,
        "agreement": 100 * float((top == reference_top).mean()),
    }
