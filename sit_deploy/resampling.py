"""Part of a resized image, equal to the bit to the same part of Pillow's: for pictures whose whole would be out of proportion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

_PRECISION = 22  # bits, of the fixed point that Pillow resizes in


def resized_box(
    image: Image.Image, target: tuple[int, int], box: tuple[int, int, int, int], interpolation: str
) -> np.ndarray:
    """Return `image.resize(target).crop(box)` to the bit, uint8 (H, W, 3), with no more of it made than the box.

    Pillow's own `resize(box=…)` takes single precision, which shows in the pixels.
    """
    (width, height), (left, top, right, bottom) = image.size, box
    columns = _weights(width, target[0], range(left, right), interpolation)
    rows = _weights(height, target[1], range(top, bottom), interpolation)
    seen = [(places[0][0], places[-1][0] + len(places[-1][1])) for places in (columns, rows)]
    (first_column, last_column), (first_row, last_row) = seen
    pixels = np.asarray(image.crop((first_column, first_row, last_column, last_row)))
    passes = [(1, columns, first_column), (0, rows, first_row)]
    # Each pass rounds, so their order shows. It is that of Pillow 13.
    if height > target[1] and height - target[1] > 2 * (width - target[0]):
        passes.reverse()
    for axis, places, first in passes:
        sums = [
            np.tensordot(
                weights, pixels.take(range(start - first, start - first + len(weights)), axis), (0, axis)
            )
            for start, weights in places
        ]
        rounded = (np.stack(sums, axis) + (1 << (_PRECISION - 1))) >> _PRECISION
        pixels = rounded.clip(0, 255).astype(np.uint8)
    return pixels


def _weights(size: int, target: int, places: range, interpolation: str) -> list[tuple[int, np.ndarray]]:
    """Return for each output place where its inputs begin and what each of them weighs, in fixed point, as in Pillow."""
    if size == target:  # a pass that Pillow leaves out
        return [(place, np.array([1 << _PRECISION])) for place in places]
    support, curve = _FILTERS[interpolation]
    scale = size / target
    stretch = max(scale, 1.0)  # antialiasing: the filter widens where the image shrinks
    found = []
    for place in places:
        centre = (place + 0.5) * scale
        start = max(int(centre - support * stretch + 0.5), 0)
        stop = min(int(centre + support * stretch + 0.5), size)
        weights = curve((np.arange(start, stop) - centre + 0.5) * (1.0 / stretch))
        weights = weights / np.cumsum(weights)[-1] * (1 << _PRECISION)  # summed in order
        found.append((start, np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64)))
    return found


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


# support and curve of each, as in Pillow
_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
