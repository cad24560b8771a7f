"""Ranges of a float32 graph's activations, from which `precision` decides what float16 can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from calibration.ranges import TensorRange

BATCH = 8  # images observed at once


def observe_float16_ranges(
    graph: onnx.ModelProto,
    images: np.ndarray,
    max_batch: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, TensorRange]:
    """Return the range of every activation over some images, by tensor name.

    Args:
        graph: in float32.
        images: float32 (n, 3, H, W), prepared as at inference.
        max_batch: the largest batch that the graph takes.
        progress: called as progress(text, batches done, batches in all).

    Raises:
        calibration.CalibrationError: the images do not fit the graph, or it does not run.
    """
    from calibration.ranges import observe_ranges

    step = max(1, min(max_batch, BATCH))
    return observe_ranges(
        graph, [images[i : i + step] for i in range(0, len(images), step)], progress=progress
    )
