from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from calibration.histogram import LOWEST_OCTAVE, Histogram, bin_edges, bin_index

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
arrays = st_numpy.arrays(np.float32, st.integers(0, 40), elements=finite)
bits = st.sampled_from([0, 3, 8, 11])


def histogram(values: np.ndarray, bits: int = 11) -> Histogram:
    made = Histogram(bits)
    made.add(values)
    return made


@given(arrays, bits)
@settings(deadline=None)
def test_equals_numpy_on_its_own_edges(values: np.ndarray, bits: int) -> None:
    made = histogram(values, bits)
    magnitudes = np.abs(values.astype(np.float64))
    expected, _ = np.histogram(magnitudes[magnitudes > 0], made.edges)
    # numpy's last bin takes its upper edge too; no value may reach ours
    assert magnitudes.max(initial=0) < made.edges[-1]
    np.testing.assert_array_equal(made.counts[0], expected)
    assert made.zeros[0] == (values == 0).sum()
    assert made.total == values.size


@given(arrays, bits)
@settings(deadline=None)
def test_index_and_edges_agree_with_the_counts(values: np.ndarray, bits: int) -> None:
    made = histogram(values, bits)
    nonzero = np.abs(values[values != 0].astype(np.float64))
    places = bin_index(nonzero, bits)
    np.testing.assert_array_equal(np.bincount(places, minlength=made.counts.shape[1]), made.counts[0])
    assert (made.edges[places] <= nonzero).all()
    assert (nonzero < made.edges[places + 1]).all()


@given(arrays, arrays, arrays, bits)
@settings(deadline=None)
def test_merge_is_a_commutative_monoid(a: np.ndarray, b: np.ndarray, c: np.ndarray, bits: int) -> None:
    x, y, z = (histogram(values, bits) for values in (a, b, c))
    assert x.merge(y).merge(z) == x.merge(y.merge(z)) == histogram(np.concatenate([c, a, b]), bits)
    assert x.merge(y) == y.merge(x)
    assert x.merge(Histogram(bits)) == x


@given(arrays, arrays)
@settings(deadline=None)
def test_merge_leaves_its_operands_alone(a: np.ndarray, b: np.ndarray) -> None:
    x, y = histogram(a), histogram(b)
    merged = x.merge(y)
    merged.add(np.ones(3, np.float32))
    x.merge(Histogram()).add(np.ones(3, np.float32))
    assert x == histogram(a)
    assert y == histogram(b)


def test_widens_by_octaves_and_loses_nothing() -> None:
    made = histogram(np.array([1.0], np.float32), bits=2)
    assert made.counts.shape == (1, 1 + 4 * (1 - LOWEST_OCTAVE))
    assert made.edges[-1] == 2
    made.add(np.array([-100.0, 1.3], np.float32))
    assert made.edges[-1] == 128
    low = np.flatnonzero(made.counts[0])
    assert made.edges[low].tolist() == [1.0, 1.25, 96.0]
    assert made.edges[low + 1].tolist() == [1.25, 1.5, 112.0]


def test_zeros_widen_nothing() -> None:
    zeros, quarter = np.zeros(2, np.float32), np.array([0.25], np.float32)
    assert histogram(zeros).counts.shape == (1, 1)
    assert histogram(zeros).merge(histogram(quarter)) == histogram(np.concatenate([zeros, quarter]))


def test_extremes_of_float32() -> None:
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    made = histogram(np.array([tiny, -tiny, 0.0, -0.0, huge], np.float32))
    assert made.counts[0, 0] == 2
    assert made.zeros.tolist() == [2]
    assert made.counts[0, -1] == 1
    assert made.edges[-1] == 2.0**128
    assert made.edges[1] == 2.0**LOWEST_OCTAVE


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, -1]), st.sampled_from([1, 3, 50_000]))
@settings(max_examples=20, deadline=None)
def test_channels_are_histograms_of_their_own(seed: int, axis: int, inner: int) -> None:
    # 50,000 makes several chunks
    values = np.random.default_rng(seed).normal(size=(3, 2, inner)).astype(np.float32)
    values = np.where(values < -0.5, np.float32(0), values)
    values = np.moveaxis(values, 0, axis)
    made = Histogram(4, channels=3)
    made.add(values, axis)
    for index in range(3):
        alone = histogram(np.take(values, index, axis), bits=4)
        assert made.channel(index).merge(Histogram(4)).total == alone.total
        assert made.zeros[index] == alone.zeros[0]
        kept = alone.counts.shape[1]
        np.testing.assert_array_equal(made.counts[index, :kept], alone.counts[0])
        assert not made.counts[index, kept:].any()


@given(arrays, bits)
@settings(deadline=None)
def test_arrays_and_back(values: np.ndarray, bits: int) -> None:
    made = histogram(values, bits)
    arrays = made.to_arrays()
    assert Histogram.from_arrays(arrays) == made
    assert len(arrays["counts"]) <= values.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite_before_it_counts(bad: float) -> None:
    made = Histogram()
    values = np.ones(100_000, np.float32)
    values[-1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        made.add(values)
    assert made.total == 0


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="float32"):
        Histogram().add(np.ones(3))
    with pytest.raises(ValueError, match="2 channels, the values 3"):
        Histogram(channels=2).add(np.ones((4, 3), np.float32), axis=1)
    with pytest.raises(ValueError, match="1 channels, the values 3"):
        Histogram().add(np.ones((4, 3), np.float32), axis=1)
    with pytest.raises(ValueError, match="do not merge"):
        Histogram(3).merge(Histogram(4))
    with pytest.raises(ValueError, match="do not merge"):
        Histogram(channels=2).merge(Histogram(channels=3))
    with pytest.raises(ValueError, match="0 to 23 mantissa bits"):
        Histogram(24)


def test_equality_sees_every_count() -> None:
    values = np.array([1.0, 2.0, 0.0], np.float32)
    assert histogram(values) != histogram(values[:2])
    assert histogram(values) != histogram(np.array([1.0, 2.001, 0.0], np.float32))
    assert histogram(values, 3) != histogram(values, 4)


def test_edges_are_equal_steps_of_an_octave() -> None:
    edges = bin_edges(2, 1 + 4)
    assert edges.tolist() == [0.0, *(2.0**LOWEST_OCTAVE * step for step in (1, 1.25, 1.5, 1.75, 2))]
