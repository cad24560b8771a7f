"""From an observed activation to its threshold: the |x| that the largest code of a quantized grid stands for.

Codes are symmetric. int8 has the steps 0, 1, …, 127 of threshold/127 (-128 is not counted on); fp8 has the magnitudes of
E4M3, scaled so that its largest, 448, stands at the threshold. What lies above the threshold saturates.

    minmax      the largest |x| seen: nothing saturates
    average     the mean over the images of the image's largest |x|
    percentile  the |x| that a share of all elements, zeros included, does not exceed
    entropy     least Kullback-Leibler divergence between the clipped distribution and its 128 levels (int8 only)
    mse         least expected squared error, of rounding and saturation together
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from calibration.errors import CalibrationError
from calibration.histogram import Histogram, bin_edges, bin_index
from calibration.observers import ChannelObserver, TensorObserver

METHODS = ("minmax", "average", "percentile", "entropy", "mse")
PERCENTILE = 99.99
METHODS_OF: Mapping[str, tuple[str, ...]] = {
    "int8": METHODS,
    "fp8": tuple(method for method in METHODS if method != "entropy"),
}

_KL_BINS = 2048
_KL_LEVELS = 128
_KL_TIE = 1e-10  # nats; between rounding and the least divergence of real distributions, 1e-5

_OCTAVES = 24  # the least mean squared error is looked for this far below the largest |x|
_PER_OCTAVE = 64


def threshold(
    observer: TensorObserver, method: str, grid: str = "int8", percentile: float = PERCENTILE
) -> float:
    """Return the |x| that maps to the largest code; 0 for a dead tensor, one that was 0 on every image.

    It never exceeds the largest |x| seen.

    Args:
        observer: of the tensor.
        method: one of METHODS.
        grid: "int8" or "fp8".
        percentile: in (0, 100]; for the method of that name.

    Raises:
        CalibrationError: unknown method, grid or percentile; entropy for fp8, whose levels are no equal steps; nothing
            was observed; or a NaN or infinity was.
    """
    return _thresholds(observer, (method,), grid, percentile)[method]


def thresholds_by_method(
    observer: TensorObserver, grid: str = "int8", percentile: float = PERCENTILE
) -> dict[str, float]:
    """Return the threshold of every method that the grid has, by method; errors as `threshold`."""
    return _thresholds(observer, METHODS_OF.get(grid, ()), grid, percentile)


def _thresholds(
    observer: TensorObserver, methods: Sequence[str], grid: str, percentile: float
) -> dict[str, float]:
    """The thresholds of some methods; they share what is costly to make of a histogram."""
    if grid not in METHODS_OF:
        raise CalibrationError(f"unknown grid '{grid}'; choose one of {', '.join(METHODS_OF)}")
    for method in set(methods) - set(METHODS_OF[grid]):
        what = (
            f"method '{method}' does not go with {grid}"
            if method in METHODS
            else f"unknown method '{method}'"
        )
        raise CalibrationError(f"{what}; choose one of {', '.join(METHODS_OF[grid])}")
    if not 0 < percentile <= 100:
        raise CalibrationError(f"the percentile must be above 0 and at most 100, got {percentile}")
    if observer.images == 0:
        raise CalibrationError(
            "nothing was observed, so there is no threshold; calibrate on at least one image"
        )
    if observer.non_finite:
        raise CalibrationError(
            "a NaN or infinity was observed, so there is no threshold; mend the model or the images"
        )
    histogram, largest = observer.histogram, observer.absmax
    if largest == 0:
        return dict.fromkeys(methods, 0.0)
    density = cache(lambda: _Density(histogram))
    choose: dict[str, Callable[[], float]] = {
        "minmax": lambda: largest,
        "average": lambda: observer.mean_absmax,
        "percentile": lambda: _percentile(histogram, percentile, largest),
        "entropy": lambda: _entropy(density(), largest),
        "mse": lambda: _least_error(density(), largest, grid),
    }
    return {method: choose[method]() for method in methods}


def channel_thresholds(
    observer: ChannelObserver, method: str, grid: str = "int8", percentile: float = PERCENTILE
) -> np.ndarray:
    """Return the threshold of every channel, float64 (channels,); errors as `threshold`.

    Raises:
        ValueError: the observer keeps no histograms.
    """
    return np.array(
        [
            threshold(observer.channel(index), method, grid, percentile)
            for index in range(len(observer.absmax))
        ]
    )


def squared_error(histogram: Histogram, thresholds: np.ndarray, grid: str = "int8") -> np.ndarray:
    """Return the expected squared error of quantizing with each threshold, float64 (n,).

    The integral is exact where the values of a bin are spread evenly over it: in each bin the density is constant, so the
    moments up to any point are polynomials of it. With levels q_k, midpoints m_k between q_(k-1) and q_k, and M_j the
    moment of order j of what lies above a point,

        E (|x| - q)² = M_2(0) - 2 Σ (q_k - q_(k-1)) M_1(m_k) + Σ (q_k² - q_(k-1)²) M_0(m_k).

    Args:
        histogram: of one channel, not empty.
        thresholds: float64 (n,), above 0.
        grid: "int8" or "fp8".
    """
    return _squared_error(_Density(histogram), thresholds, grid) / histogram.total


def _squared_error(density: _Density, thresholds: np.ndarray, grid: str) -> np.ndarray:
    """The squared error summed over all values, float64 (n,)."""
    levels = _levels(grid)
    steps, squares, middles = np.diff(levels), np.diff(levels**2), (levels[1:] + levels[:-1]) / 2
    count, total = density.above(thresholds[:, None] * middles)
    error = density.power - 2 * thresholds * (total @ steps) + thresholds**2 * (count @ squares)
    return np.maximum(error, 0)


class _Density:
    """The values of a histogram, spread evenly over each bin: their moments above any point."""

    def __init__(self, histogram: Histogram) -> None:
        self._bits = histogram.bits
        counts = histogram.counts[0].astype(np.float64)
        # one more bin, empty, for all that lies above
        self._edges = bin_edges(histogram.bits, len(counts) + 1)
        low, high = self._edges[:-2], self._edges[1:-1]
        self._density = np.append(counts / (high - low), 0.0)
        ends = [(high ** (order + 1) - low ** (order + 1)) / (order + 1) for order in range(3)]
        # counted from the top, so that the tail, where thresholds lie, is not a difference of large sums
        self._tails = [
            np.append(np.cumsum((self._density[:-1] * end)[::-1])[::-1], [0.0, 0.0]) for end in ends
        ]
        self.power = float(np.sum(self._density[:-1] * ends[2]))

    def above(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the count and the sum of the values above each point."""
        bins, inside = self._part_of_a_bin(points)
        high = self._edges[bins + 1]
        count = self._tails[0][bins + 1] + inside
        total = self._tails[1][bins + 1] + inside * (high + points) / 2
        return count, total

    def saturated(self, points: np.ndarray) -> np.ndarray:
        """Return the squared error, summed over the values above each point, of taking them for the point."""
        bins, inside = self._part_of_a_bin(points)
        count, total, power = (tail[bins + 1] for tail in self._tails)
        rest = inside * (self._edges[bins + 1] - points) ** 2 / 3
        return rest + power - 2 * points * total + points**2 * count

    def _part_of_a_bin(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the bin of each point, and how many of its values lie above the point."""
        bins = np.minimum(bin_index(points, self._bits), len(self._density) - 1)
        return bins, self._density[bins] * (self._edges[bins + 1] - points)


@cache
def _levels(grid: str) -> np.ndarray:
    """Magnitudes of a grid as shares of its largest, ascending from 0."""
    if grid == "int8":
        return np.arange(128) / 127
    # E4M3 without infinities: subnormals k·2^-9, then 2^e·(1 + k/8) up to 448; the code above it is NaN
    normal = [2.0**exponent * (1 + k / 8) for exponent in range(-6, 9) for k in range(8)]
    return np.array([k * 2.0**-9 for k in range(8)] + normal[:-1]) / 448


def _least_error(density: _Density, largest: float, grid: str) -> float:
    """The threshold of least squared error: a search over a geometric grid, then between the best one's neighbours."""
    exponents = np.arange(0, -_OCTAVES * _PER_OCTAVE, -1) / _PER_OCTAVE
    # What saturates alone is too much for most of the grid; the margin is far more than rounding.
    enough = _squared_error(density, largest * np.exp2(exponents[::_PER_OCTAVE]), grid).min()
    exponents = exponents[density.saturated(largest * np.exp2(exponents)) <= 1.01 * enough]
    for spacing in (1 / _PER_OCTAVE, 1 / (16 * _PER_OCTAVE), 0):
        errors = _squared_error(density, largest * np.exp2(exponents), grid)
        best = exponents[np.argmin(errors)]
        exponents = np.minimum(best + spacing * np.linspace(1, -1, 33), 0)
    return float(largest * np.exp2(best))


def _percentile(histogram: Histogram, percentile: float, largest: float) -> float:
    """The percentile of |x|, spread evenly within its bin.

    Where more than that share is exactly 0, the largest |x|: a threshold of 0 would erase the tensor.
    """
    counts = histogram.counts[0]
    rank = percentile / 100 * histogram.total - int(histogram.zeros[0])
    if rank <= 0:
        return largest
    reached = np.cumsum(counts)
    index = min(int(np.searchsorted(reached, rank)), int(np.flatnonzero(counts)[-1]))
    low, high = histogram.edges[index : index + 2]
    share = (rank - (reached[index] - counts[index])) / counts[index]
    return min(float(low + share * (high - low)), largest)


def _entropy(density: _Density, largest: float) -> float:
    """The threshold of least Kullback-Leibler divergence.

    S. Migacz, 8-bit Inference with TensorRT, GTC 2017: over 2048 linear bins, the reference P is the first i bins with all
    that lies above added to the last of them; the candidate Q is the same bins without it, merged to 128 levels and
    spread again over the bins of the level that are not empty; i with the least KL(P, Q) gives the threshold (i + ½) bins.
    Exact zeros are left out, as every threshold keeps them.

    With h the bins, o what lies above and S the sum of the first i, a level of n bins that are not empty and sum L gives
    each of them q = L/(n·S); so the divergence needs no more than running sums of h, h·log h and h > 0.
    """
    points = np.arange(_KL_BINS) * (largest / _KL_BINS)
    # the largest value's bin reaches a little beyond it
    tail = np.append(density.above(points)[0], 0.0)
    bins = tail[:-1] - tail[1:]
    bins = np.where(bins > 1e-9 * tail[:-1], bins, 0)  # less is rounding
    filled, entropy = (np.concatenate([[0], np.cumsum(term)]) for term in (bins > 0, _xlogx(bins)))
    ends = np.arange(_KL_LEVELS, _KL_BINS + 1)
    bounds = -(-np.arange(_KL_LEVELS + 1) * ends[:, None] // _KL_LEVELS)  # bin j belongs to level ⌊128 j / i⌋
    level = tail[bounds[:, :-1]] - tail[bounds[:, 1:]]
    spread = np.diff(filled[bounds], axis=1)
    outside = tail[ends]
    last = bins[ends - 1]
    reference = entropy[ends - 1] + _xlogx(last + outside)
    log_candidate = np.log(np.where(spread > 0, level, 1) / np.maximum(spread, 1))
    crossed = (level * log_candidate).sum(axis=1) + outside * log_candidate[:, -1]
    inside = np.maximum(tail[0] - outside, np.finfo(float).tiny)
    divergence = (reference - crossed) / tail[0] - np.log(tail[0]) + np.log(inside)
    # what lies above fell on an empty bin, which Q leaves at 0: infinitely far
    divergence[(last == 0) & (outside > 0)] = np.inf
    # of equals the one that clips least: a few spikes are no further off clipped to the lowest of them than kept
    best = int(ends[np.flatnonzero(divergence <= divergence.min() + _KL_TIE)[-1]])
    return min((best + 0.5) * largest / _KL_BINS, largest)


def _xlogx(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1))
