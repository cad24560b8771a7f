"""Pictures of noise, of any size: every pixel counts, so that one that is taken for another shows."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Return uint8 (height, width, channels), the same for the same size; of one channel (height, width)."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 1009 + height).integers(0, 256, shape, np.uint8)


def picture(width: int, height: int) -> Image.Image:
    """Return noise in RGB."""
    return Image.fromarray(noise(width, height))
