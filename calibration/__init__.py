"""Calibration on a stream of images: memory does not grow with their number, and observations merge.

    from calibration.collect import collect_observations
    from calibration.thresholds import thresholds_by_method

    seen = collect_observations(model, images, tensors=["head/input"])
    scale = thresholds_by_method(seen.tensors["head/input"])["mse"] / 127

Modules are public under their own names; this one offers a few of their names without loading any before it is asked.

    observe    session (runs a graph), collect (observers of its tensors), observers, histogram; ranges (extremes alone)
    decide     thresholds, smoothquant, gptq, layer_error, bias_correction, formats (the grids of codes), layers, plan
    write      insert_qdq, read_qdq, graph_editor; cache (calibration.json)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibration.errors import CalibrationError

if TYPE_CHECKING:
    from calibration.cache import Calibration, TensorCalibration
    from calibration.collect import Observations
    from calibration.observers import ChannelObserver, TensorObserver
    from calibration.ranges import TensorRange, observe_ranges
    from calibration.thresholds import METHODS, channel_thresholds, threshold

__all__ = [
    "METHODS",
    "Calibration",
    "CalibrationError",
    "ChannelObserver",
    "Observations",
    "TensorCalibration",
    "TensorObserver",
    "TensorRange",
    "channel_thresholds",
    "observe_ranges",
    "threshold",
]

# loaded when first asked for: they bring numpy and onnx
_HOMES = {
    "Calibration": "cache",
    "TensorCalibration": "cache",
    "Observations": "collect",
    "ChannelObserver": "observers",
    "TensorObserver": "observers",
    "TensorRange": "ranges",
    "observe_ranges": "ranges",
    "METHODS": "thresholds",
    "channel_thresholds": "thresholds",
    "threshold": "thresholds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calibration' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"calibration.{_HOMES[name]}"), name)
