from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.errors import CalibrationError
from calibration.formats import (
    FP8,
    INT8,
    SHIFTS,
    Grid,
    broadcast_along,
    float16_scale,
    shifted_scale,
    weight_scale,
)
from tests.helpers.graphs import run

GRIDS = pytest.mark.parametrize("grid", [INT8, FP8], ids=lambda grid: grid.name)
positive = st.floats(1e-6, 6e4)


def quantize_linear(values: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the codes, as float32, that ONNX Runtime gives."""
    constants = {"scale": scale, "zero": np.zeros(scale.shape, grid.dtype), "one": np.ones_like(scale)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"], axis=0),
    ]
    interface = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", interface[:1], interface[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return run(model, values)["y"]


def awkward_values(grid: Grid, scale: float) -> np.ndarray:
    """Return values at, between and just beside codes, subnormal codes, and beyond the largest."""
    codes = np.unique(np.arange(256, dtype=np.uint8).view(grid.dtype).astype(np.float32))
    codes = codes[np.isfinite(codes)]
    ties = (codes[1:] + codes[:-1]) / 2
    values = np.concatenate([codes, ties, [1.5 * codes[-1], 1.5 * codes[0], 1e30, -1e30]]).astype(np.float32)
    values = values * np.float32(scale)
    return np.concatenate(
        [np.nextafter(values, np.float32(-np.inf)), values, np.nextafter(values, np.float32(np.inf))]
    )


@GRIDS
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0371, 3e-5])
def test_codes_are_those_of_quantize_linear(grid: Grid, scale: float) -> None:
    scale = float(float16_scale(scale))
    random = np.random.default_rng(0).normal(0, 60 * scale, 5000).astype(np.float32)
    values = np.concatenate([awkward_values(grid, scale), random])
    expected = quantize_linear(values, np.float32(scale).reshape(()), grid)
    codes = grid.codes(values, scale)
    assert codes.dtype == grid.dtype
    np.testing.assert_array_equal(codes.astype(np.float32), expected)
    assert {expected.min(), expected.max()} == {grid.lowest, grid.largest}


@GRIDS
def test_codes_of_channels_are_those_of_quantize_linear(grid: Grid) -> None:
    weight = np.random.default_rng(1).normal(size=(9, 40)).astype(np.float32)
    scale = weight_scale(weight, 0, grid)
    np.testing.assert_array_equal(
        grid.weight_codes(weight, broadcast_along(scale, 0, 2)).astype(np.float32),
        quantize_linear(weight, scale, grid),
    )


def test_fp8_is_e4m3fn() -> None:
    assert float(ml_dtypes.finfo(FP8.dtype).max) == FP8.largest == -FP8.lowest
    subnormal = 2.0**-9
    ties = np.float32([0.5, 0.51, 1.5, 2.5, 300]) * np.float32([subnormal] * 4 + [1])
    assert FP8.codes(ties, 1.0).astype(float).tolist() == [0, subnormal, 2 * subnormal, 2 * subnormal, 288]


def test_int8_weights_leave_the_lowest_code_out() -> None:
    values = np.float32([-1.0, 1.0, -128 / 127, 2])
    assert INT8.codes(values, 1 / 127).tolist() == [-127, 127, -128, 127]
    assert INT8.weight_codes(values, np.float32(1 / 127)).tolist() == [-127, 127, -127, 127]


@given(st.floats(0, 65504, width=32))
@settings(deadline=None)
def test_scales_are_rounded_up_to_float16(scale: float) -> None:
    rounded = float16_scale(scale)
    assert rounded.dtype == np.float32
    assert np.float16(rounded) == rounded
    if scale == 0:
        assert rounded == 1
    else:
        assert rounded >= scale
        assert np.float32(np.nextafter(np.float16(rounded), np.float16(0))) < scale


@pytest.mark.parametrize("scale", [math.nan, math.inf, 65505, -1, [1, math.nan]])
def test_scales_beyond_float16(scale: float | list[float]) -> None:
    with pytest.raises(CalibrationError, match="float16 does not hold"):
        float16_scale(np.float32(scale))


@given(st.floats(-100, 0, width=32), st.floats(0, 6e4, width=32))
@settings(deadline=None)
def test_a_shifted_range_fits(low: float, high: float) -> None:
    scale, shift = shifted_scale(low, high)
    assert shift in SHIFTS
    offset = shift * scale
    assert float(np.float16(scale)) == scale
    assert float(np.float32(offset)) == offset
    if offset <= 65504:
        assert float(np.float16(offset)) == offset
    ends = (np.float64([low, high]) - offset) / scale
    assert np.all((np.rint(ends) >= -128) & (np.rint(ends) <= 127))
    plain = max(float(float16_scale(np.float32(high / 127))), float(float16_scale(np.float32(-low / 128))))
    assert scale <= plain or low == high == 0


@given(positive)
def test_symmetric_ranges_are_not_shifted(limit: float) -> None:
    assert shifted_scale(-limit, limit) == (float(float16_scale(limit / 127)), 0)


def test_gelu_gets_nearly_twice_the_steps() -> None:
    scale, shift = shifted_scale(-0.17, 10.0)
    assert shift == 112
    assert 10 / 127 / scale > 1.85


@pytest.mark.parametrize("axis", [0, 1])
def test_every_channel_has_a_scale(axis: int) -> None:
    weight = np.moveaxis(np.float32([[[1, -254]], [[0.5, 0.25]], [[0, 0]]]), 0, axis)
    np.testing.assert_array_equal(weight_scale(weight, axis, INT8), [2, float16_scale(0.5 / 127), 1])
    assert weight_scale(weight, axis, FP8).shape == (3,)


def test_a_broken_weight_has_no_scale() -> None:
    with pytest.raises(CalibrationError):
        weight_scale(np.float32([[1, np.nan], [1, 2]]), 0, INT8)


def test_onnx_types() -> None:
    for grid in (INT8, FP8):
        assert numpy_helper.from_array(np.zeros(1, grid.dtype)).data_type == grid.onnx_type
        assert onnx.helper.tensor_dtype_to_np_dtype(grid.onnx_type) == grid.dtype
