"""The two 8-bit grids: their codes, and rounding to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto

from calibration.errors import CalibrationError


@dataclass(frozen=True)
class Grid:
    """Codes of a number format, times a scale.

    Attributes:
        largest: the code of the largest magnitude, +-.
        lowest: the code that negative values saturate at.
        dtype: of the codes in NumPy.
        onnx_type: in ONNX.
    """

    name: str
    largest: float
    lowest: float
    dtype: np.dtype
    onnx_type: int

    def codes(self, values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        """Round values / scale to codes, to nearest even, saturating; as QuantizeLinear does, in float32."""
        scaled = np.clip(np.asarray(values / scale, np.float32), self.lowest, self.largest)
        return (np.rint(scaled) if self.dtype.kind == "i" else scaled).astype(self.dtype)

    def weight_codes(self, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Round a weight; its codes are symmetric, so -128 is left out."""
        return self.codes(np.clip(weight, -self.largest * scale, self.largest * scale), scale)


INT8 = Grid("int8", 127.0, -128.0, np.dtype(np.int8), TensorProto.INT8)
FP8 = Grid("fp8", 448.0, -448.0, np.dtype(ml_dtypes.float8_e4m3fn), TensorProto.FLOAT8E4M3FN)
GRIDS = {grid.name: grid for grid in (INT8, FP8)}


# Codes that zero may be moved to: few enough significant bits that shift · scale is exact in float16, see `shifted_scale`.
SHIFTS = (0, 64, 96, 112)
_SHIFTED_BITS = 8
_LARGEST_FLOAT16 = 65504


def float16_scale(scale: np.ndarray | float) -> np.ndarray:
    """Round scales up to float16 values, as float32: the FP16 and the FP32 graph then hold the very same codes.

    A scale of 0, of a tensor that is 0 throughout, becomes 1. Up, so that nothing saturates that did not before.

    Raises:
        CalibrationError: one that is negative, NaN or beyond float16.
    """
    scale = np.asarray(scale, np.float32)
    if not np.all((scale >= 0) & (scale <= _LARGEST_FLOAT16)):
        raise CalibrationError(
            f"a scale is {np.max(scale):g}, which float16 does not hold; mend the model's weights"
        )
    rounded = np.where(scale > 0, scale, 1).astype(np.float16)
    with np.errstate(over="ignore"):  # what is beyond the largest is not taken
        above = np.nextafter(rounded, np.float16(np.inf))
    return np.where(rounded.astype(np.float32) < scale, above, rounded).astype(np.float32)


def shifted_scale(low: float, high: float) -> tuple[float, int]:
    """Return the smallest scale, and the shift, with which int8 codes hold [low, high] after shift · scale is subtracted.

    GELU's output, [-0.17, high], has a use for one negative code in ten: shifted, it gets nearly twice the steps. The
    scale has at most 8 significant bits where there is a shift, and a shift at most 3: their product is exact in float16,
    and so the FP16 and the FP32 graph subtract the same.
    """
    best = (math.inf, 0)
    for shift in SHIFTS:
        scale = max(high / (INT8.largest + shift), -low / (-INT8.lowest - shift), 0.0)
        if shift:
            mantissa, exponent = math.frexp(scale)
            scale = math.ldexp(math.ceil(mantissa * 2**_SHIFTED_BITS), exponent - _SHIFTED_BITS)
        best = min(best, (float(float16_scale(scale)), shift))
    return best


def weight_scale(weight: np.ndarray, channel_axis: int, grid: Grid) -> np.ndarray:
    """Return the scale of each output channel, float32 (channels,): its largest |w| takes the largest code."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    return float16_scale(np.abs(weight).max(axis=others) / grid.largest)


def scale_of_layer(
    name: str, weight: np.ndarray, channel_axis: int, grid: Grid, given: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the scales given for a layer's weight, else those of `weight_scale`."""
    scale = given.get(name)
    return weight_scale(weight, channel_axis, grid) if scale is None else scale


def broadcast_along(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Shape a vector so that it broadcasts along one axis."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)
