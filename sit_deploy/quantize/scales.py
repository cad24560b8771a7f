"""What a calibration says of a graph: its smoothing factors, and the scales that its activations are quantized with."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from calibration.cache import Calibration
from calibration.formats import GRIDS, float16_scale, shifted_scale
from calibration.insert_qdq import Scales
from calibration.layers import Layer
from calibration.smoothquant import find_smoothing_sites, smooth
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    import onnx

_SHIFT_PAYS = 0.75  # a shift costs an addition, so its scale has to be this much finer


def smoothed_graph(graph: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Return the float32 graph smoothed as a calibration says: the same logits, bit for bit.

    Raises:
        InputError: the calibration is of another graph.
    """
    sites = {site.source: site for site in find_smoothing_sites(graph)}
    if unknown := sorted(calibration.migration.keys() - sites.keys()):
        raise InputError(
            f"the calibration migrates the scales of {unknown[0]!r}, which this graph has not; calibrate again"
        )
    return smooth(graph, {sites[source]: np.array(power) for source, power in calibration.migration.items()})


def choose_scales(calibration: Calibration, layers: Collection[Layer], method: str | None = None) -> Scales:
    """Return the scale of every tensor that the layers read, and its shift where one pays (`shifted_scale`).

    In FP8 the probabilities of a softmax have a scale of 1/448 whatever was seen of them.

    Args:
        calibration: of the graph that the layers are of.
        layers: those to be quantized.
        method: of the thresholds; the calibration's own if None.

    Raises:
        calibration.CalibrationError: it lacks a tensor, or has no such method.
    """
    grid = GRIDS[calibration.grid]
    activations: dict[str, float] = {}
    shifts: dict[str, int] = {}
    fixed = {name for layer in layers if layer.weight is None for name in layer.inputs}
    probabilities = {layer.inputs[0] for layer in layers if layer.softmax}
    for name in dict.fromkeys(name for layer in layers for name in layer.inputs):
        limit = calibration.threshold(name, method)
        if name in probabilities and calibration.grid == "fp8":
            # what a softmax gives is never above 1, on no image: NVIDIA's tools fix its scale so, which costs FP8 no precision
            limit = 1.0
        activations[name] = float(float16_scale(limit / grid.largest))
        if name in fixed or calibration.grid != "int8":
            continue  # nothing takes a shift back where two activations meet; FP8 has no use for one
        seen = calibration.tensors[name]
        finer, shift = shifted_scale(max(seen.min, -limit), min(seen.max, limit))
        if finer < _SHIFT_PAYS * activations[name]:
            activations[name], shifts[name] = finer, shift
    return Scales(activations, shifts)
