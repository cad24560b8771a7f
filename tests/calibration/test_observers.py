from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from calibration.observers import ChannelObserver, ExactSum, TensorObserver

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
anything = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))
image = st_numpy.arrays(np.float32, (2, 3), elements=finite)
broken_image = st_numpy.arrays(np.float32, (2, 3), elements=anything)
streams = st.lists(st.one_of(image, image, broken_image), max_size=6)

Make = Callable[[list[np.ndarray]], TensorObserver | ChannelObserver]


def whole(images: list[np.ndarray]) -> TensorObserver:
    seen = TensorObserver.with_bits(6)
    for values in images:
        seen.update(values)
    return seen


def by_channel(images: list[np.ndarray]) -> ChannelObserver:
    seen = ChannelObserver(-1, bits=3)
    for values in images:
        seen.update(values)
    return seen


def maxima_by_channel(images: list[np.ndarray]) -> ChannelObserver:
    seen = ChannelObserver(1)
    for values in images:
        seen.update(values)
    return seen


makers = pytest.mark.parametrize("make", [whole, by_channel, maxima_by_channel])


@makers
@given(streams, streams, streams)
@settings(max_examples=60, deadline=None)
def test_merge_is_a_commutative_monoid(
    make: Make, a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]
) -> None:
    x, y, z = make(a), make(b), make(c)
    assert x.merge(y).merge(z) == x.merge(y.merge(z)) == make([*a, *b, *c])
    assert x.merge(y) == y.merge(x)
    assert x.merge(make([])) == x == make([]).merge(x)


@makers
@given(streams, st.randoms())
@settings(max_examples=60, deadline=None)
def test_order_of_the_images_does_not_show(make: Make, images: list[np.ndarray], random: Random) -> None:
    shuffled = images.copy()
    random.shuffle(shuffled)
    assert make(shuffled) == make(images)
    for key, value in make(images).to_arrays().items():
        assert value.tobytes() == make(shuffled).to_arrays()[key].tobytes(), key


@makers
@given(streams)
@settings(max_examples=60, deadline=None)
def test_arrays_and_back(make: Make, images: list[np.ndarray]) -> None:
    seen = make(images)
    assert type(seen).from_arrays(seen.to_arrays()) == seen


@makers
def test_merge_leaves_its_operands_alone(make: Make) -> None:
    a, b = np.full((2, 3), 2, np.float32), np.full((2, 3), 3, np.float32)
    x = make([a])
    for other in (make([]), make([b])):
        x.merge(other).update(b)
        other.merge(x).update(b)
        assert x == make([a])


@given(st.lists(image, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_tensor_equals_its_definition(images: list[np.ndarray]) -> None:
    seen = whole(images)
    stacked = np.stack(images)
    maxima = [Fraction(float(np.abs(values).max())) for values in images]
    assert seen.images == len(images)
    assert (seen.min, seen.max) == (stacked.min(), stacked.max())
    assert seen.absmax == np.abs(stacked).max()
    assert seen.mean_absmax == float(sum(maxima) / len(maxima))
    assert seen.histogram.total == stacked.size
    assert not seen.non_finite


@given(st.lists(image, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_channels_equal_tensors_of_their_own(images: list[np.ndarray]) -> None:
    seen = by_channel(images)
    for index in range(3):
        alone = whole([values[:, index] for values in images])
        assert seen.absmax[index] == alone.absmax
        assert seen.mean_absmax[index] == alone.mean_absmax
        channel = seen.channel(index)
        assert channel.absmax == alone.absmax
        assert channel.mean_absmax == alone.mean_absmax
        assert channel.images == len(images)
        assert channel.histogram.total == alone.histogram.total


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_shows_and_stays(bad: float) -> None:
    good, broken = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    broken[1, 2] = bad
    seen = whole([good, broken, good])
    assert seen.non_finite
    assert (seen.min, seen.max, seen.absmax, seen.mean_absmax) == (-math.inf, *[math.inf] * 3)
    assert seen.images == 3
    assert seen.histogram.total == 12
    channels = by_channel([good, broken, good])
    assert channels.non_finite
    assert np.isinf(channels.mean_absmax).all()
    assert channels.channel(0).non_finite


@pytest.mark.parametrize("values", [[-0.0, -0.0], [0.0, -0.0], [-0.0, 0.0]])
def test_negative_zero_is_zero(values: list[float]) -> None:
    # else which one a file shows would depend on their order
    seen = whole([np.array([value], np.float32) for value in values])
    assert (str(seen.min), str(seen.max), str(seen.absmax)) == ("0.0", "0.0", "0.0")
    assert seen.mean_absmax == 0


def test_nothing_seen() -> None:
    seen = TensorObserver()
    assert (seen.images, seen.absmax, seen.mean_absmax) == (0, 0, 0)
    assert ChannelObserver(0).mean_absmax.shape == (0,)


@given(st.lists(st.floats(0, float(np.finfo(np.float32).max), width=32), min_size=1, max_size=20))
@example([2.0**-149])
@example([2.0**-126, 2.0**-127])
@example([-0.0, float(np.finfo(np.float32).max)])
def test_exact_sum(values: list[float]) -> None:
    exact = ExactSum()
    for value in values:
        exact.add(np.array([value], np.float32))
    assert exact.means(len(values))[0] == float(sum(map(Fraction, values)) / len(values))


def test_a_float_sum_would_depend_on_order() -> None:
    # what ExactSum is for: 1 is lost beside 2^60 in any float64
    values = [2.0**60, 1.0, 1.0]
    sums = []
    for order in (values, values[::-1]):
        exact = ExactSum()
        for value in order:
            exact.add(np.array([value], np.float32))
        sums.append(exact)
    assert sums[0] == sums[1]
    assert sums[0].means(1)[0] == 2.0**60
    assert sums[0].limbs.sum() > 0
    assert sum(values) == 2.0**60


@makers
def test_refuses_what_does_not_fit(make: Make) -> None:
    with pytest.raises(ValueError, match="float32"):
        make([np.ones((2, 3))])
    with pytest.raises(ValueError, match="at least one"):
        make([np.zeros((0, 3), np.float32)])


def test_channels_must_stay_the_same() -> None:
    ones = [np.ones((2, size), np.float32) for size in (3, 4)]
    with pytest.raises(ValueError, match="had 3 channels, this one 4"):
        by_channel(ones)
    with pytest.raises(ValueError, match="3 and 4 channels"):
        by_channel(ones[:1]).merge(by_channel(ones[1:]))
    with pytest.raises(ValueError, match="other axes or bins"):
        by_channel([]).merge(maxima_by_channel([]))
    with pytest.raises(ValueError, match="keeps no histograms"):
        maxima_by_channel(ones[:1]).channel(0)
