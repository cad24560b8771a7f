"""Synthetic photo-like images, for checking a pipeline where the user gave no image folder. They are not photographs.

A network's ranges and its error depend on what it sees: white noise drives a vision transformer nowhere near where
photographs do. These are "dead leaves" scenes (Lee, Mumford & Huang, "Occlusion models for natural images", IJCV
2001): opaque shapes that hide one another, with radii of density r^-3, which has the statistics that natural images
share: a power spectrum that falls between 1/f^2 and 1/f^3, sharp edges, correlated colours. Each shape has shading and a
fractal texture; a light gradient, a slight blur and sensor noise lie over the whole.

They say nothing about accuracy. They are good for comparing two forms of one network on the same inputs.

The pixels are the same on every machine and with every NumPy: the bits come from PCG64's raw stream, which NumPy keeps
stable (its distributions and its floating-point functions are not), and all arithmetic is on integers.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from PIL import Image

from sit_deploy.errors import InputError

_ONE = 256  # fixed-point one: weights and texture amplitudes are multiples of 1/256


def synthetic_images(
    count: int = 16, size: int | tuple[int, int] = (384, 288), seed: int = 0
) -> list[Image.Image]:
    """`count` RGB images of `size` pixels: (width, height), or one number for a square.

    An image depends on its index, the size and the seed alone, so a longer list begins with the shorter one.

    Raises:
        InputError: a count below 1, a side below 16 or a negative seed.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if count < 1:
        raise InputError(f"number of sample images must be at least 1, got {count}")
    if min(width, height) < 16:
        raise InputError(f"sample images must be at least 16 pixels wide and high, got {size}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    return [_scene(_Bits((seed, index)), width, height) for index in range(count)]


class _Bits:
    """Integers from PCG64's raw 64-bit words."""

    def __init__(self, seed: tuple[int, ...]) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(seed))

    def between(self, low: int, high: int) -> int:
        """One integer of low..high, both included."""
        return low + ((self._words.random_raw() >> 32) * (high - low + 1) >> 32)

    def signed(self, count: int) -> np.ndarray:
        """`count` integers of -128..127, int64."""
        words = self._words.random_raw((count + 7) // 8).astype("<u8")
        return words.view(np.int8)[:count].astype(np.int64)


def _scene(bits: _Bits, width: int, height: int) -> Image.Image:
    canvas = _backdrop(bits, width, height)
    smallest, largest = max(2, min(width, height) // 28), min(width, height) // 2
    # Enough leaves to hide most of the backdrop; the last one drawn lies on top.
    for _ in range(bits.between(200, 350)):
        _draw_leaf(bits, canvas, _radius(bits, smallest, largest))
    canvas = canvas * _light(bits, width, height)[..., None] // _ONE
    canvas = _blur(_blur(canvas, 0), 1)
    canvas += bits.signed(canvas.size).reshape(canvas.shape) // 48
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def _backdrop(bits: _Bits, width: int, height: int) -> np.ndarray:
    """A vertical blend of two colours under a cloudy texture: int64 (height, width, 3)."""
    top, bottom = _colour(bits), _colour(bits)
    row = np.arange(height)[:, None]
    blend = (top * (height - 1 - row) + bottom * row) // max(1, height - 1)
    clouds = _fractal_noise(bits, width, height) * bits.between(40, 120) // _ONE
    return blend[:, None, :] + clouds[..., None]


def _colour(bits: _Bits) -> np.ndarray:
    """Brightness varies more than hue does, as in photographs; dark is commoner than bright."""
    brightness = 30 + bits.between(0, 220) * bits.between(100, 255) // 255
    warmth, tint = bits.between(-40, 40), bits.between(-20, 20)
    return np.array([brightness + warmth, brightness + tint, brightness - warmth])


def _radius(bits: _Bits, smallest: int, largest: int) -> int:
    """Density r^-3 from `smallest` on, by inversion: smallest / sqrt(u); cut off at `largest`."""
    u = bits.between(1, 1 << 20)
    return min(largest, isqrt((smallest * smallest << 20) // u))


def _draw_leaf(bits: _Bits, canvas: np.ndarray, radius: int) -> None:
    """Paint a shaded, textured ellipse or tilted rectangle over `canvas`, in place."""
    height, width, _ = canvas.shape
    centre_x, centre_y = bits.between(0, width - 1), bits.between(0, height - 1)
    # (across, along) is a turned and stretched coordinate frame in units of 1/256 pixel.
    cosine, sine, stretch = bits.between(-256, 256), bits.between(-256, 256), bits.between(256, 640)
    rectangle = bits.between(0, 2) == 0
    norm = max(1, isqrt(cosine * cosine + sine * sine))

    left, right = max(0, centre_x - radius), min(width, centre_x + radius + 1)
    top, bottom = max(0, centre_y - radius), min(height, centre_y + radius + 1)
    x = np.arange(left, right)[None, :] - centre_x
    y = np.arange(top, bottom)[:, None] - centre_y
    along = (cosine * x + sine * y) * _ONE // norm
    across = (cosine * y - sine * x) * stretch // norm
    reach = radius * _ONE
    if rectangle:
        # Inside the bounding box of the circle whatever the tilt.
        inside = np.maximum(abs(along), abs(across)) * 7 <= reach * 5
    else:
        inside = along * along + across * across <= reach * reach

    shade = along * bits.between(-60, 60) // max(1, reach)
    texture = _fractal_noise(bits, right - left, bottom - top) * bits.between(10, 160) // _ONE
    leaf = _colour(bits) + (shade + texture)[..., None]
    canvas[top:bottom, left:right][inside] = leaf[inside]


def _light(bits: _Bits, width: int, height: int) -> np.ndarray:
    """Brightness over the picture in 1/256: a linear gradient, between 0.8 and 1.25."""
    corners = [bits.between(205, 320) for _ in range(3)]
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    light = (
        corners[0]
        + (corners[1] - corners[0]) * x // (2 * width)
        + (corners[2] - corners[0]) * y // (2 * height)
    )
    return light.clip(205, 320)


def _fractal_noise(bits: _Bits, width: int, height: int) -> np.ndarray:
    """Value noise summed over octaves, each half as high and half as coarse: amplitude ~ 1/f. About -256..256, int32."""
    total = np.zeros((height, width), np.int32)
    cell, amplitude = 64, _ONE
    while cell >= 1:
        if cell <= 2 * max(width, height):
            rows, columns = height // cell + 2, width // cell + 2
            grid = bits.signed(rows * columns).astype(np.int32).reshape(rows, columns)
            total += amplitude * _enlarge(grid, cell, width, height) >> 8
        cell //= 2
        amplitude //= 2
    return total


def _enlarge(grid: np.ndarray, cell: int, width: int, height: int) -> np.ndarray:
    """Bilinear interpolation to `cell` times the resolution, of which the first `height` rows and `width` columns."""
    if cell == 1:
        return grid[:height, :width]
    row, far, near = _steps(cell, height)
    rows = grid[row] * near[:, None] + grid[row + 1] * far[:, None]
    column, far, near = _steps(cell, width)
    both = rows[:, column] * near + rows[:, column + 1] * far
    return both >> 2 * (cell.bit_length() - 1)  # by cell², which is a power of two: much faster than dividing


@lru_cache(4096)
def _steps(cell: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each of `length` pixels the point of the grid before it, the steps from there, and those to the next."""
    point, far = np.divmod(np.arange(length, dtype=np.int32), np.int32(cell))
    return point, far, cell - far


def _blur(canvas: np.ndarray, axis: int) -> np.ndarray:
    """The weights 1, 6, 1 along one axis: the softness of a lens; edges repeat."""
    padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = np.moveaxis(np.pad(canvas, padding, mode="edge"), axis, 0)
    return np.moveaxis((padded[:-2] + 6 * padded[1:-1] + padded[2:]) // 8, 0, axis)
