"""Errors of calibration. The message is one line: what is wrong and what to do."""

from __future__ import annotations


class CalibrationError(Exception):
    """Calibration cannot go on: no images, images of the wrong shape, or a graph that does not run."""

    exit_status = 2
