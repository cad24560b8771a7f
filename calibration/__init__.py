"""Calibration on a stream of images: memory does not grow with their number, and observations merge.

    from calibration.collect import observe
    from calibration.thresholds import thresholds

    seen = observe(model, images, tensors=["head/input"])
    scale = thresholds(seen.tensors["head/input"])["mse"] / 127

Those two are reached through their modules, whose names they share.
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
