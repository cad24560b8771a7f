"""Histograms of magnitudes whose bins are the floats' own leading bits.

The bits of a positive float, read as an integer, grow with its value: exponent first, then the mantissa. Cut after
some mantissa bits they are a bin number, at a shift a value. So the bins are known before any value is: the same
number of equal bins in every octave [2^k, 2^(k+1)). A larger value adds octaves at the top and moves no count, and two
histograms merge by adding integers; neither the order of the values nor how they were split can show in the result.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

BITS = 11  # 2048 bins an octave: the finest of 2048 linear bins over any range is never narrower than a bin
LOWEST_OCTAVE = (
    -40
)  # a float16 scale is at least 2^-24, so no threshold is near; below, all share the first bin

_MANTISSA = 23  # bits of a float32
_BIAS = 127
_CHUNK = 1 << 15  # values at a time: their keys stay in the cache


class Histogram:
    """Counts of |x| over float32 values, for one tensor or for each of its channels.

    Attributes:
        bits: leading mantissa bits kept; a bin is 2^-bits of its octave wide.
        zeros: int64 (channels,), how often x was exactly 0.
        counts: int64 (channels, bins). Bin 0 holds 0 < |x| < 2^LOWEST_OCTAVE; bin i holds edges[i] ≤ |x| < edges[i + 1].
    """

    def __init__(self, bits: int = BITS, channels: int = 1) -> None:
        if not 0 <= bits <= _MANTISSA:
            raise ValueError(f"a float32 has 0 to {_MANTISSA} mantissa bits, got {bits}")
        self.bits = bits
        self.zeros = np.zeros(channels, np.int64)
        self.counts = np.zeros((channels, 1), np.int64)

    @property
    def channels(self) -> int:
        return len(self.zeros)

    @property
    def total(self) -> int:
        """Number of values counted, zeros included."""
        return int(self.counts.sum() + self.zeros.sum())

    @property
    def edges(self) -> np.ndarray:
        """Bounds of the bins, float64 (bins + 1,)."""
        return bin_edges(self.bits, self.counts.shape[1])

    def channel(self, index: int) -> Histogram:
        """Return the histogram of one channel alone; it shares the counts."""
        one = Histogram(self.bits)
        one.zeros, one.counts = self.zeros[index : index + 1], self.counts[index : index + 1]
        return one

    def add(self, values: np.ndarray, axis: int | None = None) -> None:
        """Count values.

        Args:
            values: float32, finite, of any shape.
            axis: the axis of the channels; None counts all values in the one channel there is.

        Raises:
            ValueError: not float32, a NaN or infinity, or another number of channels. Nothing is counted then.
        """
        if values.dtype != np.float32:
            raise ValueError(f"a histogram counts float32 values, got {values.dtype}")
        channels = 1 if axis is None else values.shape[axis]
        if channels != self.channels:
            raise ValueError(f"the histogram has {self.channels} channels, the values {channels}")
        if values.size == 0:
            return
        largest = max(-values.min(), values.max())
        if not np.isfinite(largest):
            raise ValueError("a histogram counts finite values; there is a NaN or infinity")
        self._reach(float(largest))
        if axis is None:
            flat = np.ascontiguousarray(values).reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                self._count(flat[start : start + _CHUNK], None)
        else:
            rows = np.moveaxis(values, axis, -1).reshape(-1, channels)
            step = max(1, _CHUNK // channels)
            for start in range(0, len(rows), step):
                self._count(np.ascontiguousarray(rows[start : start + step]), np.arange(channels))

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of both. Exact: associative, commutative, an empty histogram the identity.

        Raises:
            ValueError: other bins, or another number of channels.
        """
        if (self.bits, self.channels) != (other.bits, other.channels):
            raise ValueError(
                f"histograms of {self.bits} bits × {self.channels} channels and {other.bits} bits × "
                f"{other.channels} channels do not merge"
            )
        few, many = sorted((self, other), key=lambda h: h.counts.shape[1])
        merged = Histogram(self.bits, self.channels)
        merged.zeros = few.zeros + many.zeros
        merged.counts = many.counts.copy()
        merged.counts[:, : few.counts.shape[1]] += few.counts
        return merged

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the histogram as arrays; only the bins that hold something."""
        filled = np.flatnonzero(self.counts)
        return {
            "bits": np.array(self.bits),
            "zeros": self.zeros,
            "bins": np.array(self.counts.shape[1]),
            "filled": filled,
            "counts": self.counts.ravel()[filled],
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Histogram:
        """Return the histogram that `to_arrays` wrote."""
        read = cls(int(arrays["bits"]), len(arrays["zeros"]))
        read.zeros = np.array(arrays["zeros"], np.int64)
        read.counts = np.zeros((read.channels, int(arrays["bins"])), np.int64)
        read.counts.ravel()[arrays["filled"]] = arrays["counts"]
        return read

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            self.bits == other.bits
            and np.array_equal(self.zeros, other.zeros)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # it changes as it counts

    def _reach(self, magnitude: float) -> None:
        """Add octaves until there is a bin for the magnitude."""
        # a magnitude below 2^frexp; frexp of 0 is 0, which says nothing
        octaves = max(0, math.frexp(magnitude)[1] - LOWEST_OCTAVE) if magnitude else 0
        missing = 1 + (octaves << self.bits) - self.counts.shape[1]
        if missing > 0:
            self.counts = np.pad(self.counts, ((0, 0), (0, missing)))

    def _count(self, values: np.ndarray, rows: np.ndarray | None) -> None:
        """Count contiguous values within reach; `rows` are the channels of their last axis."""
        keys = np.left_shift(values.view(np.uint32), 1)  # the sign goes
        keys >>= np.uint32(_MANTISSA - self.bits + 1)
        below = np.uint32((_BIAS + LOWEST_OCTAVE << self.bits) - 1)
        np.maximum(keys, below, out=keys)
        keys -= below
        places = keys.astype(np.intp)
        if rows is not None:
            places += rows * self.counts.shape[1]
        lowest = self.counts[:, 0].copy()
        np.add.at(self.counts.reshape(-1), places.reshape(-1), 1)
        if (self.counts[:, 0] != lowest).any():  # rare enough that looking for zeros here costs nothing
            zeros = (values == 0).reshape(-1, self.channels).sum(axis=0)
            self.zeros += zeros
            self.counts[:, 0] -= zeros


@lru_cache(maxsize=8)  # many tensors reach the same octave
def bin_edges(bits: int, bins: int) -> np.ndarray:
    """Return the bounds of the first `bins` bins, exact in float64 (bins + 1,); it cannot be written to."""
    place = np.arange(bins)
    octave, step = place >> bits, place & ((1 << bits) - 1)
    edges = np.concatenate(
        [[0.0], np.ldexp(1 + np.ldexp(step.astype(np.float64), -bits), octave + LOWEST_OCTAVE)]
    )
    edges.flags.writeable = False
    return edges


def bin_index(magnitudes: np.ndarray, bits: int) -> np.ndarray:
    """Return the bin of each magnitude, float64 ≥ 0 of any shape, as int64; there is no last bin."""
    keys = magnitudes.view(np.int64) >> (52 - bits)
    return np.maximum(keys - ((1023 + LOWEST_OCTAVE << bits) - 1), 0)
