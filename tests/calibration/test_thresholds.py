from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.observers import ChannelObserver, TensorObserver
from calibration.thresholds import (
    METHODS,
    METHODS_OF,
    channel_thresholds,
    squared_error,
    threshold,
    thresholds_by_method,
)

ordinary = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
images = st_numpy.arrays(np.float32, st.integers(1, 60), elements=ordinary)
every_method = pytest.mark.parametrize(
    ("method", "grid"), [(method, grid) for grid, methods in METHODS_OF.items() for method in methods]
)


def observed(*images: np.ndarray) -> TensorObserver:
    seen = TensorObserver()
    for values in images:
        seen.update(np.asarray(values, np.float32))
    return seen


def gauss_above(x: float) -> float:
    """Share of |x| above a magnitude, for the standard normal distribution."""
    return math.erfc(x / math.sqrt(2))


def laplace_above(x: float) -> float:
    return math.exp(-x)


def known(above: Callable[[float], float], largest: float) -> TensorObserver:
    """What an observer would have seen of 10^15 values spread as evenly as can be: no chance in it."""
    seen = observed([largest])
    shares = np.array([above(min(edge, largest)) for edge in seen.histogram.edges])
    seen.histogram.counts[0] = np.rint(1e15 * -np.diff(shares)).astype(np.int64)
    return seen


def quantized(values: np.ndarray, threshold: float, grid: str) -> np.ndarray:
    """What Q/DQ makes of the values."""
    values = values.astype(np.float64)
    if grid == "int8":
        return np.clip(np.rint(values / (threshold / 127)), -127, 127) * (threshold / 127)
    scaled = np.clip(values / (threshold / 448), -448, 448).astype(np.float32)
    return scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * (threshold / 448)


def measured_error(values: np.ndarray, threshold: float, grid: str) -> float:
    return float(np.mean((values.astype(np.float64) - quantized(values, threshold, grid)) ** 2))


def expected_error(clip: float, density) -> float:
    """E (x - Q(x))² of a symmetric density under int8, integrated numerically on a fine grid of each step."""
    step = clip / 127
    total = 0.0
    # midpoints of 64 parts of each of the 127.5 cells, then the tail
    inside = (np.arange(64 * 127 + 32) + 0.5) * step / 64
    total += np.sum((inside - np.rint(inside / step) * step) ** 2 * density(inside)) * step / 64
    beyond = clip + step / 2 + (np.arange(20_000) + 0.5) * 40 / 20_000
    total += np.sum((beyond - clip) ** 2 * density(beyond)) * 40 / 20_000
    return 2 * total


@every_method
@given(images)
@example(np.array([1.0], np.float32))
@settings(max_examples=15, deadline=None)
def test_within_the_largest_magnitude(method: str, grid: str, values: np.ndarray) -> None:
    assume(values.any())
    assert 0 < threshold(observed(values), method, grid) <= np.abs(values).max()


@every_method
@given(images, images, st.integers(-12, 12))
@settings(max_examples=15, deadline=None)
def test_scales_with_the_values(method: str, grid: str, a: np.ndarray, b: np.ndarray, exponent: int) -> None:
    # a power of two is exact in float32 and moves every bin by whole octaves
    factor = 2.0**exponent
    plain, scaled = observed(a, b), observed(a * factor, b * factor)
    assert threshold(scaled, method, grid) == pytest.approx(
        factor * threshold(plain, method, grid), rel=1e-12
    )


@every_method
@given(images)
@settings(max_examples=15, deadline=None)
def test_signs_and_multiplicity_do_not_show(method: str, grid: str, values: np.ndarray) -> None:
    once = threshold(observed(values), method, grid)
    assert threshold(observed(-values), method, grid) == once
    assert threshold(observed(values, values), method, grid) == pytest.approx(once, rel=1e-3)


@every_method
def test_dead_tensor(method: str, grid: str) -> None:
    assert threshold(observed(np.zeros(5), np.zeros(5)), method, grid) == 0


def test_minmax_and_average_by_hand() -> None:
    seen = observed([1.0, -7.0], [3.0, 2.0], [0.0, 0.0])
    assert threshold(seen, "minmax") == 7
    assert threshold(seen, "average") == (7 + 3 + 0) / 3


@pytest.mark.parametrize("percentile", [1.0, 50.0, 99.0, 99.99, 100.0])
def test_percentile_is_that_of_the_values(percentile: float) -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[:20_000] = 0
    expected = np.percentile(np.abs(values), percentile)
    got = threshold(observed(values), "percentile", percentile=percentile)
    if expected > 0:
        # a bin is at most 2^-11 of its value wide, and the sampling gap at the tail is wider than that
        assert got == pytest.approx(expected, rel=2e-3)
    else:
        assert got == np.abs(values).max()


def test_percentile_100_is_the_largest() -> None:
    seen = observed([0.3, -1.37, 0.9])
    assert threshold(seen, "percentile", percentile=100) == seen.absmax


@pytest.mark.parametrize(
    ("above", "density", "largest", "published"),
    # optimal clipping at 8 bits: R. Banner et al., Post training 4-bit quantization of convolutional networks for
    # rapid-deployment, NeurIPS 2019, and its code (ACIQ): 3.92 σ and 9.89 b
    [
        (gauss_above, lambda x: np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), 7.9, 3.92),
        (laplace_above, lambda x: np.exp(-x) / 2, 30.0, 9.89),
    ],
    ids=["gauss", "laplace"],
)
def test_least_squared_error_of_known_distributions(
    above: Callable[[float], float],
    density: Callable[[np.ndarray], np.ndarray],
    largest: float,
    published: float,
) -> None:
    clips = published * np.linspace(0.9, 1.1, 401)
    errors = [expected_error(clip, density) for clip in clips]
    best = int(np.argmin(errors))
    assert clips[best] == pytest.approx(published, rel=0.005)
    got = threshold(known(above, largest), "mse")
    assert got == pytest.approx(clips[best], rel=0.002)
    assert expected_error(got, density) <= errors[best] * (1 + 1e-5)


@pytest.mark.parametrize("grid", ["int8", "fp8"])
@pytest.mark.parametrize("clip", [0.5, 1.7, 3.0, 4.4, 9.0])
def test_squared_error_is_that_of_quantizing_the_values(grid: str, clip: float) -> None:
    values = np.random.default_rng(0).normal(size=400_000).astype(np.float32)
    values[:50_000] = 0
    got = squared_error(observed(values).histogram, np.array([clip]), grid)[0]
    assert got == pytest.approx(measured_error(values, clip, grid), rel=5e-3)


@given(images, st.floats(0.01, 200), st.sampled_from(["int8", "fp8"]))
@settings(max_examples=30, deadline=None)
def test_squared_error_is_exact_for_even_bins(values: np.ndarray, clip: float, grid: str) -> None:
    # each value stands for all of its bin: so compare with a sum over the bin
    assume(values.any())
    seen = Histogram(3)
    seen.add(values)
    counts, edges = seen.counts[0], seen.edges
    filled = np.flatnonzero(counts)
    share = (np.arange(4000) + 0.5) / 4000
    spread = edges[filled][:, None] + np.diff(edges)[filled][:, None] * share
    errors = (spread - quantized(spread, clip, grid)) ** 2
    expected = (errors.mean(axis=1) * counts[filled]).sum() / values.size
    got = squared_error(seen, np.array([clip]), grid)[0]
    assert got == pytest.approx(expected, rel=2e-3, abs=1e-7 * clip**2)


@pytest.mark.parametrize("grid", ["int8", "fp8"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_no_other_threshold_errs_less(grid: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.standard_t(3, size=100_000) * 0.3).astype(np.float32)
    got = threshold(observed(values), "mse", grid)
    candidates = np.abs(values).max() * np.geomspace(1, 1e-3, 400)
    best = min(measured_error(values, clip, grid) for clip in candidates)
    assert measured_error(values, got, grid) <= 1.01 * best


def test_least_squared_error_gives_up_one_outlier_of_many() -> None:
    # clipping it costs (1000 - 5)², keeping it 4e6·(1000/127)²/12
    values = np.random.default_rng(0).normal(size=400_000)
    assert threshold(observed(*[values] * 9, np.append(values, 1000)), "mse") < 100


def test_a_tensor_on_the_codes_keeps_them() -> None:
    # values k·s, k ≤ 127, are represented without error by their own maximum and by little else
    values = np.repeat(np.arange(128) / 127, 100).astype(np.float32)
    assert threshold(observed(values), "mse") == pytest.approx(1, rel=1e-3)


def direct_entropy(values: np.ndarray) -> float:
    """The search written out as the talk has it: one candidate, one bin at a time."""
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    width = magnitudes.max() / 2048
    bins, _ = np.histogram(magnitudes, 2048, (0, magnitudes.max()))
    divergences = {}
    for i in range(128, 2049):
        reference = bins[:i].astype(float)
        outliers = bins[i:].sum()
        reference[-1] += outliers
        candidate = np.zeros(i)
        level_of = np.arange(i) * 128 // i
        for level in range(128):
            members = np.flatnonzero((level_of == level) & (bins[:i] > 0))
            if len(members):
                candidate[members] = bins[:i][level_of == level].sum() / len(members)
        p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1)
        if (q[p > 0] == 0).any():
            continue
        divergences[i] = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
    best = min(divergences, key=divergences.__getitem__)
    return min((best + 0.5) * width, magnitudes.max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["laplace", "relu", "outlier"])
def test_entropy_is_the_published_search(shape: str) -> None:
    generator = np.random.default_rng(0)
    values = generator.laplace(size=200_000) if shape == "laplace" else generator.normal(size=200_000)
    if shape == "relu":
        values = np.maximum(values, 0)
    if shape == "outlier":
        values = np.append(values, 30)
    values = values.astype(np.float32)
    # ours spreads each of its bins evenly over the linear ones, so near ties may fall otherwise
    assert threshold(observed(values), "entropy") == pytest.approx(direct_entropy(values), rel=0.01)


def test_entropy_keeps_what_has_no_tail() -> None:
    values = np.linspace(-1, 1, 200_001, dtype=np.float32)
    assert threshold(observed(values), "entropy") == pytest.approx(1, rel=0.01)


def test_entropy_keeps_spikes() -> None:
    # the reference clipped at 1 is one spike, and so is its candidate: a divergence of 0, like that of keeping both
    assert threshold(observed([1, 1, 2]), "entropy") == 2


def test_entropy_does_not_see_zeros() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    padded = np.append(values, np.zeros(500_000, np.float32))
    assert threshold(observed(padded), "entropy") == threshold(observed(values), "entropy")


def test_every_method_of_each_grid_by_channel() -> None:
    generator = np.random.default_rng(0)
    seen = ChannelObserver(0, bits=11)
    alone = [TensorObserver() for _ in range(3)]
    for _ in range(4):
        values = generator.normal(size=(3, 500)).astype(np.float32) * np.array([[1], [0], [30]], np.float32)
        seen.update(values)
        for one, row in zip(alone, values, strict=True):
            one.update(row)
    for grid, methods in METHODS_OF.items():
        for method in methods:
            got = channel_thresholds(seen, method, grid)
            assert got[1] == 0
            np.testing.assert_allclose(got, [threshold(one, method, grid) for one in alone], rtol=1e-12)


def test_all_thresholds_at_once() -> None:
    seen = observed(np.random.default_rng(0).normal(size=10_000))
    assert tuple(thresholds_by_method(seen)) == METHODS
    assert thresholds_by_method(seen, "fp8", 99.0) == {
        method: threshold(seen, method, "fp8", 99.0) for method in ("minmax", "average", "percentile", "mse")
    }


@pytest.mark.parametrize(
    ("seen", "method", "grid", "percentile", "message"),
    [
        ([[1.0]], "max", "int8", 99.0, "unknown method 'max'; choose one of minmax, average"),
        ([[1.0]], "entropy", "fp8", 99.0, "'entropy' does not go with fp8"),
        ([[1.0]], "mse", "int4", 99.0, "unknown grid 'int4'; choose one of int8, fp8"),
        ([[1.0]], "percentile", "int8", 0.0, "above 0 and at most 100, got 0"),
        ([[1.0]], "percentile", "int8", 101.0, "at most 100"),
        ([[1.0]], "percentile", "int8", math.nan, "at most 100"),
        ([], "minmax", "int8", 99.0, "nothing was observed"),
        ([[1.0, math.nan]], "minmax", "int8", 99.0, "NaN or infinity was observed"),
    ],
)
def test_refusals(seen: list, method: str, grid: str, percentile: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        threshold(observed(*seen), method, grid, percentile)
