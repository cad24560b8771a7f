"""Where the quantizer's ranges come from: the model's training, a calibration cache, or images; and a calibration by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.files import scratch
from sit_deploy.pipeline.float_graph import FloatGraph, make_float_graph
from sit_deploy.pipeline.request import CALIBRATION_IMAGES, BuildRequest
from sit_deploy.pipeline.work import Work

if TYPE_CHECKING:
    import onnx

    from calibration.cache import Calibration
    from sit_deploy.preprocessing import Preprocessing
    from sit_deploy.processes import Shard
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import Quantizer


@dataclass(frozen=True)
class Quantization:
    """What writes 8 bits into a graph, and what it knows its ranges from.

    Attributes:
        quantizer: of the float graph.
        calibration: None for a model that was trained for 8 bits.
        stream: of the calibration images; None where there are none beside a cache.
    """

    quantizer: Quantizer
    calibration: Calibration | None = None
    stream: ImageStream | None = None


def make_quantization(work: Work, float_graph: FloatGraph) -> Quantization:
    """Return what quantizes the graph: from the model's training, from a calibration cache, or from images."""
    from sit_deploy.data.overlap import count_same_files
    from sit_deploy.quantize.quantizer import make_quantizer, trained_quantizer

    request, graph, preprocessing = work.request, float_graph.graph, float_graph.preprocessing
    if request.trained_thresholds:
        work.note("the model was trained in int8 (--qat): its own thresholds are used")
        return Quantization(trained_quantizer(graph, request.trained_thresholds))
    stream = calibration_stream(request, preprocessing)
    shared = count_same_files(stream.sources, work.samples.files or ()) if stream and work.samples else 0
    if shared:
        work.warn(
            f"calibrated on images that accuracy is measured on ({shared} of {len(stream.sources)}): it may be better than on "
            "others; pass --calib-data with images of training"
        )
    with work.step("Calibrating") as report:
        calibration = _calibrate(work, graph, stream, preprocessing, report)
    method = None if request.calib_method == "auto" else request.calib_method
    with work.step("Rounding and measuring layers") as report:
        quantizer = make_quantizer(graph, calibration, stream, request.quantize, method, report)
    work.note(*quantizer.notes)
    return Quantization(quantizer, calibration, stream)


def write_calibration(
    request: BuildRequest, output: Path, progress: Any, gather: Any, shard: Shard
) -> tuple[Calibration, list[str]]:
    """Make a calibration without a build, in one process or a share of it in each of several; the first one writes it.

    Args:
        request: of a build in 8 bits.
        output: the file.
        progress: how it shows progress.
        gather: merges what all processes saw (`sit_deploy.quantize.calibrate.calibrate`).
        shard: this process among them.

    Returns:
        The calibration, the same in every process, and what is odd about it.

    Raises:
        InputError: fewer images than processes; and as `sit_deploy.pipeline.build.build`.
    """
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.models.data_config import describe
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate

    work = Work(request, progress)
    with scratch(output) as folder:
        float_graph = make_float_graph(work, folder)
    stream = calibration_stream(request, float_graph.preprocessing)
    if len(stream.sources) < shard.size:
        raise InputError(f"{len(stream.sources)} calibration images for {shard.size} processes; start fewer")
    graph = float_graph.graph
    with work.step("Calibrating") as report:
        calibration, oddities = calibrate(
            graph,
            stream,
            CalibrationMethod(request.precision, request.calib_method, request.calib_percentile),
            layers=make_plan(find_layers(graph), request.precision, request.quantize).quantized,
            gather=gather,
            shard=shard,
            progress=report,
        )
        if shard.rank == 0:
            calibration.save(output)
    prepared = describe(float_graph.preprocessing.to_dict(), float_graph.sources)
    notes = [f"the images' preprocessing: {prepared}", *work.notes, *oddities]
    return calibration, notes


def calibration_stream(request: BuildRequest, preprocessing: Preprocessing) -> ImageStream | None:
    """Return the images to calibrate on; synthetic ones for random weights; None where a cache has to do."""
    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.quantize.image_stream import ImageStream, calibration_images

    if request.calib_data:
        return calibration_images(request.calib_data, request.calib_images, CALIBRATION_IMAGES, preprocessing)
    if request.checkpoint or request.calib_cache:
        return None
    count = request.calib_images or 32
    return ImageStream(synthetic_images(count), preprocessing, f"{count} synthetic images")


def _calibrate(
    work: Work,
    graph: onnx.ModelProto,
    stream: ImageStream | None,
    preprocessing: Preprocessing,
    report: Any,
) -> Calibration:
    """Return the calibration of the cache where there is one, else of the images; a cache that is not there is written."""
    from calibration.cache import Calibration
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate, graph_key
    from sit_deploy.quantize.image_stream import images_key

    request, cache = work.request, work.request.calib_cache
    if cache and (cache.exists() or stream is None):
        calibration = Calibration.load(cache)
        calibration.preprocessing = {
            "orientation": "stored",
            **calibration.preprocessing,
        }  # older ones do not say it
        calibration.require(
            graph=graph_key(graph),
            images=images_key(stream.digests()) if stream else None,
            preprocessing=preprocessing.to_dict(),
            grid=request.precision,
            method=None if request.calib_method == "auto" else request.calib_method,
            percentile=request.calib_percentile if request.calib_method == "percentile" else None,
        )
        work.note(f"calibrated by {cache}, made from {calibration.images.description}")
        return calibration
    layers = make_plan(find_layers(graph), request.precision, request.quantize).quantized
    calibration, oddities = calibrate(
        graph,
        stream,
        CalibrationMethod(request.precision, request.calib_method, request.calib_percentile),
        layers=layers,
        progress=report,
    )
    work.note(*oddities)
    if cache:
        calibration.save(cache)
    return calibration
