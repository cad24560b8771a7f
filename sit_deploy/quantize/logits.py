"""Logits of a graph over a stream of images, and how far they are from others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from calibration.session import ImageSession, at_batch_one

if TYPE_CHECKING:
    import onnx

    from sit_deploy.quantize.image_stream import ImageStream


def run_logits(graph: onnx.ModelProto, stream: ImageStream) -> np.ndarray:
    """Return logits (images, classes) of a graph that ONNX Runtime runs as it is, image by image.

    Raises:
        calibration.CalibrationError: the images do not fit the graph, or it does not run.
    """
    return next(logits_of_each(graph, [stream]))


def logits_of_each(graph: onnx.ModelProto, streams: Iterable[ImageStream]) -> Iterator[np.ndarray]:
    """Yield what `run_logits` returns, of several streams: making a session of a small model takes longer than running it."""
    session = ImageSession(at_batch_one(graph))
    for stream in streams:
        yield np.concatenate([session.run(image)[0] for images in stream for image in session.fit(images)])


def logits_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean square of the difference; infinite where a logit is not finite."""
    error = float(np.square(logits.astype(np.float64) - reference).mean())
    return error if np.isfinite(error) else np.inf
