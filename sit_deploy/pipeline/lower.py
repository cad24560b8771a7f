"""Writing the precision asked for into the exported float32 graph, and comparing what comes out with what went in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import ATTENTION_OPSET
from sit_deploy.bundle import MODEL
from sit_deploy.errors import GateError
from sit_deploy.graph.write import write_graph
from sit_deploy.measure.parity import Hop, compare, require
from sit_deploy.pipeline.calibration import Quantization, make_quantization
from sit_deploy.pipeline.float_graph import FloatGraph, make_float_graph
from sit_deploy.pipeline.logits import graph_outputs
from sit_deploy.pipeline.request import CALIBRATION_IMAGES
from sit_deploy.pipeline.tuned import Tuning
from sit_deploy.pipeline.tuning import tune
from sit_deploy.pipeline.work import Progress, Work
from sit_deploy.precisions import EIGHT_BITS, TOLERANCE

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from calibration.ranges import TensorRange
    from sit_deploy.graph.precision import PrecisionPlan
    from sit_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class LoweredGraph:
    """A graph in the precision asked for, and the float graph that it was made of.

    Attributes:
        float_graph: the float32 graph, with its model and the images that are compared on.
        graph: the graph in its precision.
        plan: which of its nodes computes in what float type.
        values: its outputs of the compared images.
        quantization: where it holds 8 bits.
        takes_pixels: whether it takes uint8 and normalises by itself.
        tuning: where its layers in 8 bits were chosen by measuring.
    """

    float_graph: FloatGraph
    graph: onnx.ModelProto
    plan: PrecisionPlan
    values: dict[str, np.ndarray]
    quantization: Quantization | None = None
    takes_pixels: bool = False
    tuning: Tuning | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared up to what the graph takes."""
        prepared = self.float_graph.preprocessing
        return prepared.raw if self.takes_pixels else prepared

    @property
    def inputs(self) -> np.ndarray:
        """The compared images as the graph takes them."""
        compared = self.float_graph.compared
        return compared.pixels if self.takes_pixels else compared.normalised


def make_lowered_graph(work: Work, folder: Path) -> LoweredGraph:
    """Write model.onnx, in the precision asked for, into `folder`, every hop up to it compared."""
    return lower(work, make_float_graph(work, folder), folder)


def lower(work: Work, float_graph: FloatGraph, folder: Path) -> LoweredGraph:
    """Write the precision into the graph, compare it, and save it as model.onnx.

    Raises:
        GateError: out of tolerance.
        InputError, calibration.CalibrationError: no calibration of use.
        NoGainError: a tuning found nothing to gain from 8 bits.
    """
    from sit_deploy.graph.precision import to_precision

    precision, graph = work.request.precision, float_graph.graph
    if precision == "fp32":
        return LoweredGraph(float_graph, *to_precision(graph, "fp32"), float_graph.values)
    if precision in EIGHT_BITS:
        quantization, tuning = make_quantization(work, float_graph), None
        if work.request.tunes:
            quantization, tuning = tune(work, float_graph, quantization, folder)
        return replace(lower_quantized(work, float_graph, quantization, folder), tuning=tuning)
    return LoweredGraph(float_graph, *_to_half(work, float_graph, graph, float_graph.values, graph, folder))


def lower_quantized(
    work: Work, float_graph: FloatGraph, quantization: Quantization, folder: Path
) -> LoweredGraph:
    """Write 8 bits into the graph as a quantizer's plan says, and the rest as the request says."""
    from calibration.split_scales import share_split_scales
    from sit_deploy.graph import lint
    from sit_deploy.graph.attention import write_attention
    from sit_deploy.graph.precision import to_precision

    request, quantizer, compared = work.request, quantization.quantizer, float_graph.compared
    with work.step(f"Writing {request.precision} into the graph"):
        low = quantizer.quantized()
        if work.engine is not None and work.engine.one_scale_where_split:
            low = share_split_scales(low, quantizer.graph)
        if request.opset >= ATTENTION_OPSET:
            low = write_attention(low)
        lint.check(low, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
        write_graph(low, folder / MODEL)
        values = graph_outputs(folder / MODEL, compared.normalised, request.batch_range)
        hop = compare(
            f"ONNX {request.precision}",
            values,
            float_graph.values,
            compared.reference,
            TOLERANCE[request.precision],
            precision=request.precision,
        )
        work.hops.append(hop)
        _require(work)
    if request.high == "fp32":
        return LoweredGraph(float_graph, low, to_precision(low, "fp32")[1], values, quantization)
    graph, plan, values = _to_half(work, float_graph, low, values, quantizer.graph, folder)
    return LoweredGraph(float_graph, graph, plan, values, quantization)


def _to_half(
    work: Work,
    float_graph: FloatGraph,
    source: onnx.ModelProto,
    previous: dict[str, np.ndarray],
    observed: onnx.ModelProto,
    folder: Path,
) -> tuple[onnx.ModelProto, PrecisionPlan, dict[str, np.ndarray]]:
    """Write FP16 or BF16 into a graph, compare it with its rounding simulated, and save it as model.onnx.

    Args:
        work: of the build.
        float_graph: whose images are compared on.
        source: the graph; what of it is in 8 bits stays.
        previous: its outputs.
        observed: the float32 graph whose activations say what FP16 can hold.
        folder: for model.onnx.
    """
    from sit_deploy.graph.precision import COARSE

    request = work.request
    half = request.high if request.precision in EIGHT_BITS else request.precision
    ranges = None
    if half == "fp16":  # bf16 has the range of float32
        with work.step("Observing ranges") as report:
            ranges = _ranges(work, float_graph, observed, report)
    with work.step(f"Writing {half} into the graph"):
        written = _write_half(work, float_graph, source, previous, folder, ranges)
        large = ranges is not None and any(seen.absmax > COARSE for seen in ranges.values())
        if large and not written.hop.passed:
            finer = _write_half(work, float_graph, source, previous, folder, ranges, COARSE)
            if finer.hop.error < written.hop.error:
                count = len(finer.plan.held_back) - len(written.plan.held_back)
                work.note(
                    f"fp16 rounds values above {COARSE:g} too coarsely for this model: {count} more nodes stay fp32"
                )
                written = finer
        work.hops.append(written.hop)
        _require(work)
        write_graph(written.graph, folder / MODEL)
    return written.graph, written.plan, written.values


@dataclass(frozen=True)
class _Half:
    """A graph with 16 bits in it, and what it was compared by."""

    graph: onnx.ModelProto
    plan: PrecisionPlan
    values: dict[str, np.ndarray]
    hop: Hop


def _write_half(
    work: Work,
    float_graph: FloatGraph,
    source: onnx.ModelProto,
    previous: dict[str, np.ndarray],
    folder: Path,
    ranges: Mapping[str, TensorRange] | None,
    coarse: float | None = None,
) -> _Half:
    """Write 16 bits into a graph (`to_precision`), and compare it with its rounding simulated.

    Raises:
        GateError: an output is not finite.
    """
    import numpy as np

    from sit_deploy.graph import lint
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.simulate import first_non_finite

    request, images = work.request, float_graph.compared.normalised
    quantized = request.precision in EIGHT_BITS
    half = request.high if quantized else request.precision
    low, plan = to_precision(source, half, ranges, coarse)
    lint.check(low, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
    values = simulated_outputs(low, images, request.batch_range, folder)
    if not all(np.isfinite(array).all() for array in values.values()):
        raise GateError(f"{first_non_finite(low, images)}; nothing was written")
    hop = compare(
        f"ONNX {request.precision}, rest {half}" if quantized else f"ONNX {half}",
        values,
        previous,
        float_graph.compared.reference,
        TOLERANCE[request.precision],
        "rounding simulated",
        request.precision,
    )
    return _Half(low, plan, values, hop)


def _ranges(
    work: Work, float_graph: FloatGraph, observed: onnx.ModelProto, report: Progress
) -> dict[str, TensorRange]:
    """Return the range of every activation, over the compared images and as many of the calibration images as 8 bits would see.

    An outlier may be in one image of many, and FP16 that never saw it overflows.
    """
    from calibration.ranges import observe_ranges
    from sit_deploy.graph.float16_ranges import observe_float16_ranges
    from sit_deploy.quantize.image_stream import calibration_images

    request, images = work.request, float_graph.compared.normalised
    if request.calib_data is None:
        return observe_float16_ranges(observed, images, request.batch_range[1], report)
    ranges = observe_float16_ranges(observed, images, request.batch_range[1])  # a few; the bar is of the many
    many = request.calib_images or CALIBRATION_IMAGES
    stream = calibration_images(request.calib_data, None, many, float_graph.preprocessing, work.damaged)
    more = observe_ranges(observed, stream, progress=report)
    return {name: seen.merge(more[name]) for name, seen in ranges.items()}


def simulated_outputs(
    graph: onnx.ModelProto, images: np.ndarray, batch: tuple[int, int], folder: Path
) -> dict[str, np.ndarray]:
    """Return the outputs of a graph with its 16-bit rounding simulated, since a CPU has no kernels for it.

    Args:
        graph: in any precision.
        images: as it takes them.
        batch: smallest and largest batch that it takes.
        folder: for a file of its own, which is removed.
    """
    from sit_deploy.graph.simulate import simulate

    path = folder / "simulated.onnx"
    write_graph(simulate(graph), path)
    values = graph_outputs(path, images, batch)
    path.unlink()
    return values


def _require(work: Work) -> None:
    """Stop at a hop out of tolerance; not yet where an accuracy budget may take layers back from 8 bits."""
    if work.request.max_accuracy_drop is None or work.request.precision not in EIGHT_BITS:
        require(work.hops)
