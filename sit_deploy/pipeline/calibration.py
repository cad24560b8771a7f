"""Where the quantizer's ranges come from: the model's training, a calibration cache, or images; and a calibration by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.calls import takes_options
from sit_deploy.errors import InputError
from sit_deploy.files import check_output, scratch
from sit_deploy.pipeline.float_graph import FloatGraph, make_float_graph
from sit_deploy.pipeline.request import CALIBRATION_IMAGES, BuildRequest
from sit_deploy.pipeline.work import Progress, Work
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.schema import require_type
from sit_deploy.text import WarningText

if TYPE_CHECKING:
    import onnx

    from calibration.cache import Calibration
    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.preprocessing import Preprocessing
    from sit_deploy.processes import World
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import EngineForm, Quantizer


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
    from sit_deploy.quantize.quantizer import (
        choose_correction,
        make_quantizer,
        prepare_quantizer,
        trained_quantizer,
    )

    request, graph, preprocessing = work.request, float_graph.graph, float_graph.preprocessing
    if request.trained_thresholds:
        work.note("the model was trained in int8 (--qat): its own thresholds are used")
        return Quantization(trained_quantizer(graph, request.trained_thresholds))
    stream = calibration_stream(request, preprocessing, work.damaged)
    shared = count_same_files(stream.sources, work.samples.files or ()) if stream and work.samples else 0
    if shared:
        work.warn(
            f"calibrated on images that accuracy is measured on ({shared} of {len(stream.sources)}): it may be better than on "
            "others; pass --calib-data with images of training"
        )
    with work.step("Calibrating", passes=True) as report:
        calibration = _calibrate(work, graph, stream, preprocessing, report)
    method = None if request.calib_method == "auto" else request.calib_method
    with work.step("Rounding and measuring layers") as report:
        if request.tunes:  # which groups there will be, and what there is to tell of them, is not known yet
            from calibration.plan import DEFAULT_GROUPS

            groups = _observed_groups(work, graph, calibration)
            quantizer = prepare_quantizer(
                graph, calibration, stream, groups, method, report, _engine_form(work)
            )
            usual = quantizer.with_plan(quantizer.plan.of_groups(DEFAULT_GROUPS))
            corrected = choose_correction(usual, stream).corrected
            return Quantization(replace(quantizer, corrected=corrected), calibration, stream)
        quantizer = make_quantizer(
            graph, calibration, stream, request.quantize, method, report, _engine_form(work)
        )
    work.note(*quantizer.notes)
    return Quantization(quantizer, calibration, stream)


def _observed_groups(work: Work, graph: onnx.ModelProto, calibration: Calibration) -> tuple[str, ...]:
    """Return the groups of a graph whose ranges a calibration has; the default ones in any case, whose lack is an error later."""
    from calibration.layers import find_layers
    from calibration.plan import DEFAULT_GROUPS

    layers = find_layers(graph).values()
    lacking = dict.fromkeys(
        layer.group
        for layer in layers
        if layer.group not in DEFAULT_GROUPS and not calibration.tensors.keys() >= set(layer.inputs)
    )
    if lacking:
        work.note(
            f"{work.request.calib_cache} has no ranges for {', '.join(lacking)}: they stay high; calibrate again with "
            "--quantize auto to have them tried"
        )
    return tuple(dict.fromkeys(layer.group for layer in layers if layer.group not in lacking))


@dataclass(frozen=True)
class CalibrationResult:
    """A calibration by itself.

    Attributes:
        calibration: the ranges and thresholds, the same in every process.
        output: the file that it was written to.
        notes: what is odd about it, in sentences (`sit_deploy.text.is_warning`).
        main: False in the processes of torchrun but the first, which writes the file.
    """

    calibration: Calibration
    output: Path
    notes: tuple[str, ...]
    main: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "calibration": str(self.output.absolute()),
            "method": self.calibration.method,
            "grid": self.calibration.grid,
            "images": self.calibration.images.count,
            "tensors": len(self.calibration.tensors),
            "notes": list(self.notes),
        }


@takes_options(BuildRequest, progress=lambda shown: shown.step)
def calibrate(request: BuildRequest, progress: Progress | None = None) -> CalibrationResult:
    """Observe the ranges of a model's activations on images, and write them to the file `request.output`.

    Started by torchrun, every process takes a share of the images.

    Args:
        request: of a build in 8 bits.
        progress: is called with a step, how far it has come and how far it goes; in the main process alone.

    Raises:
        InputError: no images, a precision without 8 bits, fewer images than processes, a file that cannot be written; and as
            `sit_deploy.pipeline.build.build`.
    """
    from sit_deploy.pipeline.request_check import check_files, check_given_files, check_request
    from sit_deploy.processes import join_world

    require_type(request, BuildRequest, "a calibration")
    check_given_files(request)
    request = request.named()
    if request.calib_data is None:
        raise InputError("a calibration needs images; pass --calib-data DIR")
    if request.precision not in EIGHT_BITS:
        raise InputError(f"precision '{request.precision}' needs no calibration; choose int8 or fp8")
    check_request(request)
    check_output(request.output, request.force)
    if request.awaits_weights:
        check_files(request)
        request = request.completed(progress=progress)
        check_request(request)
    with join_world("cpu") as world:
        report = progress if progress and world.is_main else lambda *_: None
        calibration, notes = _calibrate_share(request, report, world)
    return CalibrationResult(calibration, request.output, tuple(notes), world.is_main)


def _calibrate_share(
    request: BuildRequest, progress: Progress, world: World
) -> tuple[Calibration, list[str]]:
    """Observe this process's images, merge what all processes saw, and write the file in the first."""
    from sit_deploy.models.data_config import describe

    work, shard = Work(request, progress), world.shard
    with scratch(request.output) as folder:
        float_graph = make_float_graph(work, folder)
    stream = calibration_stream(request, float_graph.preprocessing, work.damaged)
    if len(stream.sources) < shard.size:
        raise InputError(f"{len(stream.sources)} calibration images for {shard.size} processes; start fewer")
    with work.step("Calibrating", passes=True) as report:
        calibration, oddities = _observe(
            work,
            float_graph.graph,
            stream,
            report,
            gather=lambda seen: reduce(lambda a, b: a.merge(b), world.gather(seen)),
            shard=shard,
        )
        if world.is_main:
            calibration.save(request.output)
    prepared = describe(float_graph.preprocessing.to_dict(), float_graph.sources)
    left_out = [WarningText(words)] if (words := work.damaged.words) else []
    return calibration, [f"the images' preprocessing: {prepared}", *work.notes, *oddities, *left_out]


def calibration_stream(
    request: BuildRequest, preprocessing: Preprocessing, damaged: DamagedImages | None = None
) -> ImageStream | None:
    """Return the images to calibrate on; synthetic ones for random weights; None where a cache has to do."""
    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.quantize.image_stream import ImageStream, calibration_images

    if request.calib_data:
        return calibration_images(
            request.calib_data, request.calib_images, CALIBRATION_IMAGES, preprocessing, damaged
        )
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
    from sit_deploy.preprocessing import OF_OLD
    from sit_deploy.quantize.calibrate import graph_key
    from sit_deploy.quantize.image_stream import images_key

    request, cache = work.request, work.request.calib_cache
    if cache and (cache.exists() or stream is None):
        calibration = Calibration.load(cache)
        calibration.preprocessing = {**OF_OLD, **calibration.preprocessing}
        calibration.require(
            graph=graph_key(graph),
            images=images_key(stream.digests()) if stream else None,
            preprocessing=preprocessing.to_dict(),
            grid=request.precision,
            method=None if request.calib_method == "auto" else request.calib_method,
            percentile=request.calib_percentile if request.calib_method == "percentile" else None,
        )
        work.note_of_8_bits(f"calibrated by {cache}, made from {calibration.images.description}")
        return calibration
    calibration, oddities = _observe(work, graph, stream, report)
    work.note(*oddities)
    if cache:
        calibration.save(cache)
    return calibration


def _observe(
    work: Work, graph: onnx.ModelProto, stream: ImageStream, progress: Any, **share: Any
) -> tuple[Calibration, list[str]]:
    """Return the calibration that a request asks for on images, and what is odd about it; share: of one process of several."""
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.quantize.calibrate import CalibrationMethod
    from sit_deploy.quantize.calibrate import calibrate as observe_and_choose

    request, known = work.request, find_layers(graph)
    method = CalibrationMethod(request.precision, request.calib_method, request.calib_percentile)
    layers = make_plan(
        known,
        request.precision,
        None if request.tunes else request.quantize,
        one_kernel=_engine_form(work).attention_in_one_kernel,
    ).quantized
    also = known if request.tunes else ()
    return observe_and_choose(graph, stream, method, layers=layers, also=also, progress=progress, **share)


def _engine_form(work: Work) -> EngineForm:
    """Return what the engine asks of the graph; nothing where it is for none in particular."""
    from sit_deploy.quantize.quantizer import EngineForm

    engine, request = work.engine, work.request
    if engine is None:
        return EngineForm()
    targets = engine.targets_with(request.precision, request.targets)
    return EngineForm(engine.attention_in_one_kernel, engine.attends_unscaled(request.precision, targets))
