"""Sensitivity: what each layer alone in 8 bits does to the logits, and to top-1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from calibration.session import Progress
from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.logits import logits_error, logits_of_each
from sit_deploy.quantize.quantizer import Quantizer


def measure_sensitivity(
    quantizer: Quantizer,
    stream: ImageStream,
    labelled: Iterable[tuple[Any, int]] = (),
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Quantize one layer at a time; return for each what it alone does to the logits.

    Args:
        quantizer: of the graph; its plan's layers are measured.
        stream: images that the logits are of.
        labelled: (image, class) pairs; with any, top-1 in percent is measured on them beside the SQNR on the stream.
        progress: called as progress(text, done, in all).

    Returns:
        By layer: `alone_db`, the SQNR of the logits (absent where there is no error, or nothing but), `noise`, the power of their error,
        and `alone_drop`, points of top-1 lost.
    """
    samples = list(labelled)
    labels = np.array([label for _, label in samples])
    images = replace(stream, sources=[source for source, _ in samples]) if samples else None
    streams = [stream, images] if images else [stream]
    reference, *labelled_logits = logits_of_each(quantizer.graph, streams)
    signal = float(np.square(reference.astype(np.float64)).mean())
    right = [float((logits.argmax(1) == labels).mean()) for logits in labelled_logits]
    rows: dict[str, dict[str, float]] = {}
    names = quantizer.plan.quantized
    for done, name in enumerate(names):
        if progress:
            progress("One layer at a time", done, len(names))
        alone = quantizer.quantized([name])
        found, *labelled_logits = logits_of_each(alone, streams)
        noise = logits_error(found, reference)
        row = {"noise": noise}
        if noise > 0 and signal > 0:
            row["alone_db"] = 10 * math.log10(signal / noise)
        for before, logits in zip(right, labelled_logits, strict=True):
            row["alone_drop"] = round(100 * (before - float((logits.argmax(1) == labels).mean())), 9)
        rows[name] = row
    return rows
