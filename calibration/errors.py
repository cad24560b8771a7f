"""Errors of calibration. The message is one line: what is wrong and what to do."""

from __future__ import annotations

from engines.errors import Error


class CalibrationError(Error):
    """Calibration cannot go on: no images, images of the wrong shape, or a graph that does not run."""
