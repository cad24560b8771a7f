"""Calibration on a stream of images: memory does not grow with their number, and observations merge."""

from __future__ import annotations

from calibration.errors import CalibrationError

__all__ = ["CalibrationError"]
