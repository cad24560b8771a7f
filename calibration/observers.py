"""What is remembered of an activation over the images: extremes, the mean of the images' maxima, a histogram.

An observer is updated with one image at a time, and observers merge. Everything they hold is an extreme or an integer,
so that the same images give the same observer, bit for bit, in any order, in any batches, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from calibration.histogram import BITS, Histogram

CHANNEL_BITS = 5  # 32 bins an octave and channel: 4 MB for 384 channels

_LIMBS = 16


class ExactSum:
    """Sums of float32 values ≥ 0, kept as integers, so that the order of the terms does not show.

    The significand of a value, 24 bits, goes to the limb of its exponent's upper four bits, shifted by its lower four: 39
    bits of 63, so 2^24 values fit.
    """

    def __init__(self, size: int = 1) -> None:
        self.limbs = np.zeros((size, _LIMBS), np.int64)

    def add(self, values: np.ndarray) -> None:
        """Add float32 values (size,), finite and not negative, to their sums."""
        bits = values.view(np.uint32).astype(np.int64) & 0x7FFFFFFF  # -0 is 0
        exponent = bits >> 23
        significand = (bits & 0x7FFFFF) | np.where(exponent > 0, 0x800000, 0)
        exponent = np.maximum(exponent, 1)  # subnormals have the exponent of the smallest normal value
        self.limbs[np.arange(len(values)), exponent >> 4] += significand << (exponent & 15)

    def merge(self, other: ExactSum) -> ExactSum:
        """Return the sums of both."""
        merged = ExactSum()
        merged.limbs = self.limbs + other.limbs
        return merged

    def means(self, count: int) -> np.ndarray:
        """Return sum ÷ count, float64 (size,), each rounded once."""
        totals = [sum(limb << (16 * place) for place, limb in enumerate(row)) for row in self.limbs.tolist()]
        return np.array([total / (count << 150) for total in totals])

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.limbs, other.limbs) if isinstance(other, ExactSum) else NotImplemented

    __hash__ = None


@dataclass
class TensorObserver:
    """What is known of a whole tensor.

    A tensor that held a NaN or an infinity has no usable range: it is (-inf, inf) and `non_finite` is set. An observer
    that saw nothing is the identity of `merge`.

    Attributes:
        images: images seen.
        min, max: extremes of x.
        histogram: of |x|, over all images.
    """

    images: int = 0
    min: float = math.inf
    max: float = -math.inf
    non_finite: bool = False
    histogram: Histogram = field(default_factory=Histogram)
    sum_of_absmax: ExactSum = field(default_factory=ExactSum, repr=False)

    @classmethod
    def with_bits(cls, bits: int = BITS) -> TensorObserver:
        """Return an observer whose histogram keeps that many mantissa bits."""
        return cls(histogram=Histogram(bits))

    @property
    def absmax(self) -> float:
        """Largest |x|; 0 where nothing was seen."""
        return max(0.0, -self.min, self.max)

    @property
    def mean_absmax(self) -> float:
        """Mean over the images of the image's largest |x|; 0 where nothing was seen."""
        if self.non_finite:
            return math.inf
        return float(self.sum_of_absmax.means(self.images)[0]) if self.images else 0.0

    def update(self, values: np.ndarray) -> None:
        """Take in one image's values.

        Args:
            values: float32 of any shape, at least one value. A NaN or infinity sets `non_finite`.

        Raises:
            ValueError: not float32, or empty.
        """
        _check(values)
        low, high = values.min(), values.max()
        self.images += 1
        if not (np.isfinite(low) and np.isfinite(high)):
            self.min, self.max, self.non_finite = -math.inf, math.inf, True
            return
        # + 0 makes -0 a 0: which of the two a minimum finds depends on their order
        self.min, self.max = min(self.min, float(low) + 0.0), max(self.max, float(high) + 0.0)
        self.sum_of_absmax.add(np.maximum(-low, high, dtype=np.float32).reshape(1))
        self.histogram.add(values)

    def merge(self, other: TensorObserver) -> TensorObserver:
        """Return what both saw together: exact, associative and commutative."""
        return TensorObserver(
            self.images + other.images,
            min(self.min, other.min),
            max(self.max, other.max),
            self.non_finite or other.non_finite,
            self.histogram.merge(other.histogram),
            self.sum_of_absmax.merge(other.sum_of_absmax),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the observer as arrays."""
        return {
            "images": np.array(self.images),
            "min": np.array(self.min),
            "max": np.array(self.max),
            "non_finite": np.array(self.non_finite),
            "sum_of_absmax": self.sum_of_absmax.limbs,
            **_prefixed("histogram", self.histogram.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TensorObserver:
        """Return the observer that `to_arrays` wrote."""
        read = cls(
            int(arrays["images"]),
            float(arrays["min"]),
            float(arrays["max"]),
            bool(arrays["non_finite"]),
            Histogram.from_arrays(_under("histogram", arrays)),
        )
        read.sum_of_absmax.limbs = np.array(arrays["sum_of_absmax"], np.int64)
        return read


class ChannelObserver:
    """What is known of each channel of a tensor.

    Args:
        axis: the axis of the channels in the values; negative counts from the end.
        bits: mantissa bits of a histogram of |x| for each channel; none is kept if None.

    Attributes:
        images: images seen.
        absmax: float32 (channels,), largest |x| of each; empty before the first image.
        non_finite: whether a NaN or infinity was seen.
        histogram: of |x| by channel, or None.
    """

    def __init__(self, axis: int, bits: int | None = None) -> None:
        self.axis = axis
        self.bits = bits
        self.images = 0
        self.non_finite = False
        self.absmax = np.zeros(0, np.float32)
        self.histogram = None if bits is None else Histogram(bits, 0)
        self.sum_of_absmax = ExactSum(0)

    @property
    def mean_absmax(self) -> np.ndarray:
        """Mean over the images of the channel's largest |x| in the image, float64 (channels,)."""
        if self.non_finite:
            return np.full(len(self.absmax), math.inf)
        return self.sum_of_absmax.means(max(self.images, 1))

    def update(self, values: np.ndarray) -> None:
        """Take in one image's values.

        Args:
            values: float32 with the channels on the observer's axis. A NaN or infinity sets `non_finite`, and the
                image adds to nothing else.

        Raises:
            ValueError: not float32, empty, or another number of channels than before.
        """
        _check(values)
        channels = values.shape[self.axis]
        if len(self.absmax) == 0:
            self._widen(channels)
        if channels != len(self.absmax):
            raise ValueError(f"the images before had {len(self.absmax)} channels, this one {channels}")
        maxima = np.abs(np.moveaxis(values, self.axis, -1).reshape(-1, channels)).max(axis=0)
        self.images += 1
        if not np.isfinite(maxima).all():
            self.non_finite = True
            return
        np.maximum(self.absmax, maxima, out=self.absmax)
        self.sum_of_absmax.add(maxima)
        if self.histogram is not None:
            self.histogram.add(values, self.axis)

    def merge(self, other: ChannelObserver) -> ChannelObserver:
        """Return what both saw together: exact, associative and commutative.

        Raises:
            ValueError: another axis, other bins, or another number of channels.
        """
        if (self.axis, self.bits) != (other.axis, other.bits):
            raise ValueError("observers of other axes or bins do not merge")
        if len(self.absmax) == 0 or len(other.absmax) == 0:
            filled = other if len(self.absmax) == 0 else self
            return ChannelObserver.from_arrays(filled.to_arrays())
        if len(self.absmax) != len(other.absmax):
            raise ValueError(f"observers of {len(self.absmax)} and {len(other.absmax)} channels do not merge")
        merged = ChannelObserver(self.axis, self.bits)
        merged.images = self.images + other.images
        merged.non_finite = self.non_finite or other.non_finite
        merged.absmax = np.maximum(self.absmax, other.absmax)
        merged.sum_of_absmax = self.sum_of_absmax.merge(other.sum_of_absmax)
        if self.histogram is not None and other.histogram is not None:
            merged.histogram = self.histogram.merge(other.histogram)
        return merged

    def channel(self, index: int) -> TensorObserver:
        """Return one channel as a tensor of its own, whose sign is not known: its range is ±absmax.

        Raises:
            ValueError: no histograms are kept.
        """
        if self.histogram is None:
            raise ValueError("the observer keeps no histograms; make it with bits")
        largest = math.inf if self.non_finite else float(self.absmax[index])
        one = TensorObserver(self.images, -largest, largest, self.non_finite, self.histogram.channel(index))
        one.sum_of_absmax.limbs = self.sum_of_absmax.limbs[index : index + 1]
        return one

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the observer as arrays."""
        return {
            "axis": np.array(self.axis),
            "images": np.array(self.images),
            "non_finite": np.array(self.non_finite),
            "absmax": self.absmax.copy(),
            "sum_of_absmax": self.sum_of_absmax.limbs.copy(),
            **({} if self.histogram is None else _prefixed("histogram", self.histogram.to_arrays())),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ChannelObserver:
        """Return the observer that `to_arrays` wrote."""
        histogram = _under("histogram", arrays)
        read = cls(int(arrays["axis"]), int(histogram["bits"]) if histogram else None)
        read.images = int(arrays["images"])
        read.non_finite = bool(arrays["non_finite"])
        read.absmax = np.array(arrays["absmax"], np.float32)
        read.sum_of_absmax.limbs = np.array(arrays["sum_of_absmax"], np.int64)
        if histogram:
            read.histogram = Histogram.from_arrays(histogram)
        return read

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelObserver):
            return NotImplemented
        return (
            (self.axis, self.bits, self.images, self.non_finite, self.histogram)
            == (other.axis, other.bits, other.images, other.non_finite, other.histogram)
            and np.array_equal(self.absmax, other.absmax)
            and self.sum_of_absmax == other.sum_of_absmax
        )

    __hash__ = None

    def _widen(self, channels: int) -> None:
        self.absmax = np.zeros(channels, np.float32)
        self.sum_of_absmax = ExactSum(channels)
        if self.bits is not None:
            self.histogram = Histogram(self.bits, channels)


def _check(values: np.ndarray) -> None:
    if values.dtype != np.float32 or values.size == 0:
        raise ValueError(f"an observer takes float32 values, at least one; got {values.dtype} {values.shape}")


def _prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{key}": value for key, value in arrays.items()}


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")
    }
