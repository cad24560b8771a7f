"""Calibration as `build` and `calibrate` do it: images in, observed ranges of the graph's activations out.

Some images pass for the channels' maxima, from which SmoothQuant finds its factors, and then all, through the smoothed graph, for the
histograms. Neither pass holds more than one batch of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.cache import Calibration, CalibrationImages, TensorCalibration
from calibration.collect import Observations, collect_observations
from calibration.formats import GRIDS, float16_scale, shifted_scale
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layers import Layer, find_layers
from calibration.plan import make_plan
from calibration.session import ImageSession, at_batch_one
from calibration.smoothquant import find_smoothing_sites, smooth, smoothing_exponents
from calibration.thresholds import METHODS_OF, PERCENTILE, thresholds_by_method
from sit_deploy import __version__
from sit_deploy.data.images import spread
from sit_deploy.errors import InputError
from sit_deploy.processes import WHOLE, Shard
from sit_deploy.text import shown

if TYPE_CHECKING:
    import onnx

    from sit_deploy.data.images import Source
    from sit_deploy.preprocessing import Preprocessing

Progress = Callable[[str, int, int], None]
Gather = Callable[[Observations], Observations]

AUTO = "auto"
SMOOTHING_IMAGES = 128  # images that factors are found on: factors of two need no more
METHOD_IMAGES = 32  # images that the methods are compared on
_BATCH = 8  # images decoded at a time; the graph sees them one by one
_SHIFT_PAYS = 0.75  # a shift costs an addition, so its scale has to be this much finer


@dataclass(frozen=True)
class ImageStream:
    """Calibration images, decoded and prepared anew in every pass: iterating gives float32 (n, 3, H, W).

    description: where they are from, for people.
    """

    sources: Sequence[Source]
    preprocessing: Preprocessing
    description: str

    def __len__(self) -> int:
        return -(-len(self.sources) // _BATCH)

    def __iter__(self) -> Iterator[np.ndarray]:
        from sit_deploy.data.images import batches

        for images, _ in batches(self.sources, self.preprocessing, _BATCH):
            yield images

    def spread(self, count: int) -> ImageStream:
        """Return the stream of `count` of the images, or of all, evenly spread over them."""
        return replace(self, sources=spread(self.sources, count))

    def part(self, shard: Shard) -> ImageStream:
        """Return the part of the images that one process takes."""
        return replace(self, sources=shard.of(self.sources))

    def digests(self) -> list[str]:
        """Return the SHA-256 of every image as it is stored, in hexadecimal."""
        found = []
        for source in self.sources:
            data = source.tobytes() if hasattr(source, "tobytes") else Path(source).read_bytes()
            found.append(hashlib.sha256(data).hexdigest())
        return found


def calibration_images(
    where: Path, count: int | None, default: int, preprocessing: Preprocessing
) -> ImageStream:
    """Return the stream of the images of a folder that calibration is to see.

    Args:
        where: the folder.
        count: how many, which then have to be there; None for `default`, or all where there are fewer.
        default: how many, where nobody says.
        preprocessing: of the images.

    Raises:
        InputError: no images, fewer than asked for, or one that cannot be read.
    """
    from sit_deploy.data.splits import find_training_images

    where, found = find_training_images(where)
    images = found.images
    if count is not None and count > len(images):
        raise InputError(
            f"{shown(where)} has {len(images)} images and --calib-images asks for {count}; add images or ask for fewer"
        )
    chosen = spread(images, default if count is None else count)
    return ImageStream(chosen, preprocessing, f"{len(chosen)} of {len(images)} images in {shown(where)}")


def graph_key(graph: onnx.ModelProto) -> str:
    """Return what a calibration knows its graph by: SHA-256 of the float32 graph at batch 1."""
    return hashlib.sha256(at_batch_one(graph).SerializeToString(deterministic=True)).hexdigest()


def images_key(digests: Collection[str]) -> str:
    """Return what a calibration knows its images by, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def calibrate(
    graph: onnx.ModelProto,
    stream: ImageStream,
    precision: str = "int8",
    method: str = AUTO,
    *,
    percentile: float = PERCENTILE,
    layers: Collection[str] = (),
    gather: Gather = lambda seen: seen,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> tuple[Calibration, list[str]]:
    """Observe a float32 graph; return its calibration, and what is odd about it, in sentences.

    Args:
        graph: the float32 graph.
        stream: all images.
        precision: "int8" or "fp8".
        method: one of `METHODS_OF[precision]`, or "auto": the one with the best logits on some of the images.
        percentile: of the method of that name.
        layers: names of those that are to be quantized, which the methods are compared on; the plan's default ones if none.
            Ranges are observed for every other layer that has a weight too.
        gather: merges what all processes saw; each of them gets the same back.
        shard: the share of them that this process observes.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        calibration.CalibrationError: NaN or infinite activations, or a graph that does not run.
        InputError: an unknown method, or an image that cannot be read.
    """
    if method not in (AUTO, *METHODS_OF[precision]):
        raise InputError(
            f"{precision} has no calibration method '{method}'; choose from {', '.join((AUTO, *METHODS_OF[precision]))}"
        )
    report = progress or (lambda *_: None)
    places = find_smoothing_sites(graph)
    few = stream.spread(max(SMOOTHING_IMAGES, shard.size)).part(shard)
    seen = gather(collect_observations(graph, few, [], {place.tensor: -1 for place in places}, report))
    exponents = {
        place: smoothing_exponents(graph, place, seen.channels[place.tensor].absmax) for place in places
    }
    smoothed = smooth(graph, exponents)
    known = find_layers(smoothed)
    chosen = [layer for name, layer in known.items() if layer.weight is not None or name in layers]
    tensors = list(dict.fromkeys(name for layer in chosen for name in layer.inputs))
    seen = gather(collect_observations(smoothed, stream.part(shard), tensors, None, report))
    digests = stream.digests()
    calibration = Calibration(
        tool=f"sit-deploy {__version__}",
        graph=graph_key(graph),
        images=CalibrationImages(images_key(digests), len(stream.sources), stream.description),
        preprocessing=stream.preprocessing.to_dict(),
        method=METHODS_OF[precision][0] if method == AUTO else method,
        grid=precision,
        percentile=percentile,
        tensors={
            name: TensorCalibration(o.min, o.max, o.absmax, thresholds_by_method(o, precision, percentile))
            for name, o in seen.tensors.items()
        },
        migration={place.source: [int(e) for e in power] for place, power in exponents.items()},
    )
    if method == AUTO:
        calibration.method = best_method(smoothed, calibration, stream.spread(METHOD_IMAGES), report, layers)
    return calibration, _oddities(calibration, digests, stream)


def smoothed_graph(graph: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """Return the float32 graph smoothed as a calibration says."""
    places = {place.source: place for place in find_smoothing_sites(graph)}
    if unknown := sorted(calibration.migration.keys() - places.keys()):
        raise InputError(
            f"the calibration migrates the scales of {unknown[0]!r}, which this graph has not; calibrate again"
        )
    return smooth(graph, {places[source]: np.array(power) for source, power in calibration.migration.items()})


def choose_scales(calibration: Calibration, layers: Collection[Layer], method: str | None = None) -> Scales:
    """Return the scale of every tensor that the layers read, and its shift where one pays (`shifted_scale`)."""
    grid = GRIDS[calibration.grid]
    activations: dict[str, float] = {}
    shifts: dict[str, int] = {}
    fixed = {name for layer in layers if layer.weight is None for name in layer.inputs}
    for name in dict.fromkeys(name for layer in layers for name in layer.inputs):
        limit = calibration.threshold(name, method)
        activations[name] = float(float16_scale(limit / grid.largest))
        if name in fixed or calibration.grid != "int8":
            continue  # nothing takes a shift back where two activations meet; FP8 has no use for one
        seen = calibration.tensors[name]
        finer, shift = shifted_scale(max(seen.min, -limit), min(seen.max, limit))
        if finer < _SHIFT_PAYS * activations[name]:
            activations[name], shifts[name] = finer, shift
    return Scales(activations, shifts)


def best_method(
    graph: onnx.ModelProto,
    calibration: Calibration,
    stream: ImageStream,
    progress: Progress,
    layers: Collection[str] = (),
) -> str:
    """Return the method whose thresholds leave the logits nearest to those of the float graph, weights rounded to nearest."""
    known = find_layers(graph)
    names = layers or make_plan(known, calibration.grid).quantized
    quantized = [known[name] for name in names]
    reference = run_logits(graph, stream)
    found: dict[str, float] = {}
    methods = METHODS_OF[calibration.grid]
    for done, method in enumerate(methods):
        progress("Comparing calibration methods", done, len(methods))
        scales = choose_scales(calibration, quantized, method)
        low = insert_qdq(graph, names, scales, calibration.grid)
        found[method] = logits_error(run_logits(low, stream), reference)
    progress("Comparing calibration methods", len(methods), len(methods))
    return min(found, key=found.get)


def run_logits(graph: onnx.ModelProto, stream: ImageStream) -> np.ndarray:
    """Return logits (images, classes) of a graph that ONNX Runtime runs as it is, image by image."""
    session = ImageSession(at_batch_one(graph))
    return np.concatenate([session.run(image)[0] for images in stream for image in session.fit(images)])


def logits_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """Return the power of the error; infinite where a logit is not finite."""
    error = float(np.square(logits.astype(np.float64) - reference).mean())
    return error if np.isfinite(error) else np.inf


def _oddities(calibration: Calibration, digests: Sequence[str], stream: ImageStream) -> list[str]:
    """Say what makes a calibration doubtful though it could be done."""
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
