"""Writing the precision asked for into the exported float32 graph, and comparing what comes out with what went in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import MODEL
from sit_deploy.data.overlap import count_same_files
from sit_deploy.errors import GateError, InputError
from sit_deploy.measure.parity import compare, require
from sit_deploy.pipeline.request import CALIBRATION_IMAGES, BuildRequest
from sit_deploy.precisions import EIGHT_BITS, TOLERANCE
from sit_deploy.text import WarningText

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from calibration.cache import Calibration
    from sit_deploy.graph.precision import PrecisionPlan
    from sit_deploy.pipeline.float_graph import Work
    from sit_deploy.preprocessing import Preprocessing
    from sit_deploy.processes import Shard
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import Quantizer


@dataclass(frozen=True)
class Lowered:
    """A graph in its precision, which node computes in what, and its logits on the compared images.

    Attributes:
        quantizer, calibration, stream: where it holds 8 bits; calibration is None for a model trained for them, stream where
            there are no images beside a calibration cache.
    """

    graph: onnx.ModelProto
    plan: PrecisionPlan
    logits: np.ndarray
    quantizer: Quantizer | None = None
    calibration: Calibration | None = None
    stream: ImageStream | None = None


@dataclass(frozen=True)
class Exported:
    """The float32 graph that was exported, with the images, its logits on them, and PyTorch's."""

    graph: onnx.ModelProto
    images: np.ndarray
    logits: np.ndarray
    reference: np.ndarray


def lower(work: Work, exported: Exported, preprocessing: Preprocessing, folder: Path) -> Lowered:
    """Write the precision into the graph, compare it, and save it as model.onnx.

    Raises:
        GateError: out of tolerance.
        InputError, calibration.CalibrationError: no calibration of use.
    """
    from sit_deploy.graph.precision import to_precision

    precision = work.request.precision
    if precision == "fp32":
        return Lowered(*to_precision(exported.graph, "fp32"), exported.logits)
    if precision not in EIGHT_BITS:
        return Lowered(*to_half(work, exported, exported.graph, precision, folder))
    quantizer, calibration, stream = _quantizer(work, exported, preprocessing)
    return lower_quantized(work, exported, quantizer, calibration, stream, folder)


def lower_quantized(
    work: Work,
    exported: Exported,
    quantizer: Quantizer,
    calibration: Calibration | None,
    stream: ImageStream | None,
    folder: Path,
) -> Lowered:
    """Write 8 bits into the graph as a quantizer's plan says, and the rest as the request says."""
    from sit_deploy.graph import lint
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.write import write_graph
    from sit_deploy.pipeline.float_graph import graph_logits

    request = work.request
    with work.step(f"Writing {request.precision} into the graph"):
        low = quantizer.quantized()
        lint.check(low, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
        write_graph(low, folder / MODEL)
        logits = graph_logits(folder / MODEL, exported.images, request.batch_range)
        tolerance = TOLERANCE[request.precision]
        name = f"ONNX {request.precision}"
        work.hops.append(
            compare(
                name,
                logits,
                exported.logits,
                exported.reference,
                tolerance,
                precision=request.precision,
            )
        )
        _require(work)
    if request.high == "fp32":
        return Lowered(low, to_precision(low, "fp32")[1], logits, quantizer, calibration, stream)
    rest = Exported(low, exported.images, logits, exported.reference)
    graph, plan, logits = to_half(work, rest, quantizer.graph, request.high, folder)
    return Lowered(graph, plan, logits, quantizer, calibration, stream)


def to_half(
    work: Work, exported: Exported, observed: onnx.ModelProto, precision: str, folder: Path
) -> tuple[onnx.ModelProto, PrecisionPlan, np.ndarray]:
    """Write FP16 or BF16 into a graph, compare it with its rounding simulated, and save it as model.onnx.

    Args:
        work: of the build.
        exported: the float32 graph.
        observed: the float32 graph whose activations say what FP16 can hold.
        precision: "fp16" or "bf16".
        folder: of the bundle.
    """
    import numpy as np

    from sit_deploy.graph import lint
    from sit_deploy.graph.float16_ranges import observe_float16_ranges
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.simulate import first_non_finite, simulate
    from sit_deploy.graph.write import write_graph
    from sit_deploy.pipeline.float_graph import graph_logits

    request = work.request
    ranges = None
    if precision == "fp16":  # bf16 has the range of float32
        with work.step("Observing ranges") as report:
            ranges = observe_float16_ranges(observed, exported.images, request.batch_range[1], report)
    with work.step(f"Writing {precision} into the graph"):
        low, plan = to_precision(exported.graph, precision, ranges)
        lint.check(low, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
        write_graph(simulate(low), folder / "simulated.onnx")
        logits = graph_logits(folder / "simulated.onnx", exported.images, request.batch_range)
        (folder / "simulated.onnx").unlink()
        if not np.isfinite(logits).all():
            raise GateError(f"{first_non_finite(low, exported.images)}; nothing was written")
        name = f"ONNX {request.precision}" + (
            f", rest {precision}" if request.precision in EIGHT_BITS else ""
        )
        work.hops.append(
            compare(
                name,
                logits,
                exported.logits,
                exported.reference,
                TOLERANCE[request.precision],
                "rounding simulated",
                request.precision,
            )
        )
        _require(work)
        write_graph(low, folder / MODEL)
    return low, plan, logits


def _require(work: Work) -> None:
    """Stop at a hop out of tolerance; not yet where an accuracy budget may take layers back from 8 bits."""
    if work.request.max_accuracy_drop is None or work.request.precision not in EIGHT_BITS:
        require(work.hops)


def _quantizer(
    work: Work, exported: Exported, preprocessing: Preprocessing
) -> tuple[Quantizer, Calibration | None, ImageStream | None]:
    """Return what quantizes the graph: from the model's training, from a calibration cache, or from images."""
    from sit_deploy.quantize.quantizer import make_quantizer, trained_quantizer

    request = work.request
    if request.trained_thresholds:
        work.notes.append("the model was trained in int8 (--qat): its own thresholds are used")
        return trained_quantizer(exported.graph, request.trained_thresholds), None, None
    stream = calibration_stream(request, preprocessing)
    shared = count_same_files(stream.sources, work.samples.files or ()) if stream and work.samples else 0
    if shared:
        work.notes.append(
            WarningText(
                f"calibrated on images that accuracy is measured on ({shared} of {len(stream.sources)}): it may be better "
                "than on others; pass --calib-data with images of training"
            )
        )
    with work.step("Calibrating") as report:
        calibration = _calibration(work, exported.graph, stream, preprocessing, report)
    method = None if request.calib_method == "auto" else request.calib_method
    with work.step("Rounding and measuring layers") as report:
        quantizer = make_quantizer(exported.graph, calibration, stream, request.quantize, method, report)
    work.notes += quantizer.notes
    return quantizer, calibration, stream


def calibrate_alone(
    request: BuildRequest, output: Path, progress: Any, gather: Any, shard: Shard
) -> tuple[Calibration, list[str]]:
    """Make a calibration without a build, in one process or a share of it in each of several; the first one writes it.

    Args:
        request: of the build that it is for.
        output: the file.
        progress: called with a step, how much of it is done, and of how much.
        gather: merges what all processes saw (`sit_deploy.quantize.calibrate.calibrate`).
        shard: this process among them.

    Returns:
        The calibration, the same in every process, and what is odd about it.

    Raises:
        InputError: fewer images than processes; and as `sit_deploy.pipeline.build.build`.
    """
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.files import scratch
    from sit_deploy.models.data_config import describe
    from sit_deploy.pipeline.float_graph import Work, make_float_graph
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate

    work = Work(request, progress)
    with scratch(output) as folder:
        made = make_float_graph(work, folder)
    stream = calibration_stream(request, made.preprocessing)
    if len(stream.sources) < shard.size:
        raise InputError(f"{len(stream.sources)} calibration images for {shard.size} processes; start fewer")
    graph = made.exported.graph
    with work.step("Calibrating") as report:
        found, notes = calibrate(
            graph,
            stream,
            CalibrationMethod(request.precision, request.calib_method, request.calib_percentile),
            layers=make_plan(find_layers(graph), request.precision, request.quantize).quantized,
            gather=gather,
            shard=shard,
            progress=report,
        )
        if shard.rank == 0:
            found.save(output)
    told = describe(made.preprocessing.to_dict(), made.sources)
    return found, [f"the images' preprocessing: {told}", *work.notes, *notes]


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


def _calibration(
    work: Work,
    graph: onnx.ModelProto,
    stream: ImageStream | None,
    preprocessing: Preprocessing,
    report: Any,
) -> Calibration:
    from calibration.cache import Calibration
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate, graph_key
    from sit_deploy.quantize.image_stream import images_key

    request, cache = work.request, work.request.calib_cache
    if cache and (cache.exists() or stream is None):
        found = Calibration.load(cache)
        found.preprocessing = {"orientation": "stored", **found.preprocessing}  # older ones do not say it
        found.require(
            graph=graph_key(graph),
            images=images_key(stream.digests()) if stream else None,
            preprocessing=preprocessing.to_dict(),
            grid=request.precision,
            method=None if request.calib_method == "auto" else request.calib_method,
            percentile=request.calib_percentile if request.calib_method == "percentile" else None,
        )
        work.notes.append(f"calibrated by {cache}, made from {found.images.description}")
        return found
    layers = make_plan(find_layers(graph), request.precision, request.quantize).quantized
    found, notes = calibrate(
        graph,
        stream,
        CalibrationMethod(request.precision, request.calib_method, request.calib_percentile),
        layers=layers,
        progress=report,
    )
    work.notes += notes
    if cache:
        found.save(cache)
    return found
