"""Calibration as `build` and `calibrate` do it: images in, observed ranges of the graph's activations out.

Some images pass for the channels' maxima, from which SmoothQuant's factors come, and then all, through the smoothed graph,
for the histograms. Neither pass holds more than one batch of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibration.cache import Calibration, CalibrationImages, TensorCalibration
from calibration.collect import Observations, collect_observations
from calibration.insert_qdq import insert_qdq
from calibration.layers import find_layers
from calibration.plan import make_plan
from calibration.session import Progress, at_batch_one
from calibration.smoothquant import find_smoothing_sites, smooth, smoothing_exponents
from calibration.thresholds import METHODS_OF, PERCENTILE, thresholds_by_method
from sit_deploy import __version__
from sit_deploy.errors import InputError
from sit_deploy.processes import WHOLE, Shard
from sit_deploy.quantize.image_stream import ImageStream, images_key
from sit_deploy.quantize.logits import logits_error, run_logits
from sit_deploy.quantize.scales import choose_scales

if TYPE_CHECKING:
    import onnx

Gather = Callable[[Observations], Observations]

AUTO = "auto"
SMOOTHING_IMAGES = 128  # images that the channels' maxima are of: factors of two need no more
METHOD_IMAGES = 32  # images that the methods are compared on


@dataclass(frozen=True)
class CalibrationMethod:
    """How thresholds are chosen.

    Attributes:
        grid: of the codes that they are for, "int8" or "fp8".
        name: one of `METHODS_OF[grid]`, or AUTO for the one with the best logits on some of the images.
        percentile: of the method of that name, above 0 and at most 100.
    """

    grid: str = "int8"
    name: str = AUTO
    percentile: float = PERCENTILE

    def check(self) -> None:
        """Refuse a method that the grid does not have.

        Raises:
            InputError: with those that it has.
        """
        names = (AUTO, *METHODS_OF[self.grid])
        if self.name not in names:
            raise InputError(
                f"{self.grid} has no calibration method '{self.name}'; choose from {', '.join(names)}"
            )


def graph_key(graph: onnx.ModelProto) -> str:
    """Return what a calibration knows its graph by: SHA-256 of the float32 graph at batch 1."""
    return hashlib.sha256(at_batch_one(graph).SerializeToString(deterministic=True)).hexdigest()


def calibrate(  # noqa: PLR0913
    graph: onnx.ModelProto,
    stream: ImageStream,
    method: CalibrationMethod,
    *,
    layers: Collection[str] = (),
    also: Collection[str] = (),
    gather: Gather = lambda observations: observations,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> tuple[Calibration, list[str]]:
    """Observe a float32 graph; return its calibration, and what is odd about it, in sentences.

    It takes more than seven arguments: what is observed and how, and which part of that is this process's.

    Args:
        graph: as it was exported; it is not changed.
        stream: all images.
        method: how the thresholds are chosen.
        layers: names of those that are to be quantized, which the methods are compared on; the plan's default ones if
            none. Ranges are observed for every other layer that has a weight too.
        also: names of further layers whose ranges are observed.
        gather: merges what all processes observed; each of them gets the same back.
        shard: the share of the images that this process observes.
        progress: called as progress(text, done, in all); the text says which of the passes over the images it is.

    Raises:
        calibration.CalibrationError: NaN or infinite activations, or a graph that does not run.
        InputError: an unknown method, or an image that cannot be read.
    """
    method.check()
    passes = 3 if method.name == AUTO else 2

    def shown(number: int, what: str) -> Progress:
        report = progress or (lambda *_: None)
        return lambda _, done, total: report(f"pass {number} of {passes}, {what}", done, total)

    sites = find_smoothing_sites(graph)
    few = stream.spread(max(SMOOTHING_IMAGES, shard.size)).part(shard)
    channels = gather(
        collect_observations(graph, few, [], {site.tensor: -1 for site in sites}, shown(1, "channels"))
    ).channels
    exponents = {site: smoothing_exponents(graph, site, channels[site.tensor].absmax) for site in sites}
    smoothed = smooth(graph, exponents)
    observed = [
        layer
        for name, layer in find_layers(smoothed).items()
        if layer.weight is not None or name in layers or name in also
    ]
    names = list(dict.fromkeys(name for layer in observed for name in layer.inputs))
    observations = gather(collect_observations(smoothed, stream.part(shard), names, None, shown(2, "ranges")))
    digests = stream.digests()
    calibration = Calibration(
        tool=f"sit-deploy {__version__}",
        graph=graph_key(graph),
        images=CalibrationImages(images_key(digests), len(stream.sources), stream.description),
        preprocessing=stream.preprocessing.to_dict(),
        method=METHODS_OF[method.grid][0] if method.name == AUTO else method.name,
        grid=method.grid,
        percentile=method.percentile,
        tensors={
            name: TensorCalibration(
                o.min, o.max, o.absmax, thresholds_by_method(o, method.grid, method.percentile)
            )
            for name, o in observations.tensors.items()
        },
        migration={site.source: [int(e) for e in power] for site, power in exponents.items()},
    )
    if method.name == AUTO:
        few = stream.spread(METHOD_IMAGES)
        calibration.method = _best_method(smoothed, calibration, few, layers, shown(3, "methods"))
    return calibration, _doubts(calibration, digests, stream)


def _best_method(
    graph: onnx.ModelProto,
    calibration: Calibration,
    stream: ImageStream,
    layers: Collection[str],
    progress: Progress,
) -> str:
    """Return the method whose thresholds leave the logits nearest to those of the float graph, weights rounded to nearest."""
    known = find_layers(graph)
    names = layers or make_plan(known, calibration.grid).quantized
    quantized = [known[name] for name in names]
    reference = run_logits(graph, stream)
    errors: dict[str, float] = {}
    methods = METHODS_OF[calibration.grid]
    for done, method in enumerate(methods):
        progress("Comparing calibration methods", done, len(methods))
        scales = choose_scales(calibration, quantized, method)
        low = insert_qdq(graph, names, scales, calibration.grid)
        errors[method] = logits_error(run_logits(low, stream), reference)
    progress("Comparing calibration methods", len(methods), len(methods))
    return min(errors, key=errors.get)


def _doubts(calibration: Calibration, digests: Sequence[str], stream: ImageStream) -> list[str]:
    """Return what makes a calibration doubtful though it could be done, in sentences."""
    notes = []
    if len(digests) > 1 and len(set(digests)) == 1:
        notes.append(
            f"all {len(digests)} calibration images are the same picture; give pictures as the model will see them"
        )
    if all(bool((np.ptp(images, axis=(2, 3)) == 0).all()) for images in stream.spread(METHOD_IMAGES)):
        notes.append(
            "every calibration image is of a single colour; give pictures as the model will see them"
        )
    dead = [name for name, seen in calibration.tensors.items() if seen.absmax == 0]
    if dead:
        more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
        notes.append(f"{dead[0]}{more} was 0 on every calibration image: its range is unknown")
    return notes
