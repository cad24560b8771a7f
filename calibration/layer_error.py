"""The error that 8 bits make in each layer by itself: its quantized form runs beside it, on the inputs of the float graph.

One pass over the images and one graph measure all layers at once; every comparison is reduced inside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sized
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from calibration.errors import CalibrationError
from calibration.graph_editor import GraphEditor, shapes_of
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layers import Layer, find_layers
from calibration.session import ImageSession, Progress, at_batch_one

_QUANTIZED = "/quantized"


@dataclass(frozen=True)
class LayerError:
    """A layer's own error over the images.

    Attributes:
        sqnr_db: power of its output over that of the error, in dB; infinite where there is no error, and minus infinite where
            there is nothing else.
        mean: the error's mean for each output channel, quantized less float, float64 (channels,); None for a layer without
            weights.
    """

    sqnr_db: float
    mean: np.ndarray | None


def measure_layer_errors(
    model: onnx.ModelProto,
    layers: Collection[str],
    images: Iterable[np.ndarray],
    scales: Scales,
    precision: str = "int8",
    progress: Progress | None = None,
) -> dict[str, LayerError]:
    """Return what quantizing each layer alone does to its output.

    Args:
        model: the float32 graph.
        layers: names of those of its layers that are quantized.
        images: float32 arrays (n, 3, H, W). Read once.
        scales: of every tensor that is quantized.
        precision: "int8", or "fp8" for E4M3.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        CalibrationError: as `insert_qdq` and `observe`, or a layer the graph does not have.
    """
    known = find_layers(model)
    if unknown := sorted(set(layers) - known.keys()):
        raise CalibrationError(
            f"the graph has no layer '{unknown[0]}'; plan and graph do not belong together"
        )
    measured = {name: layer for name, layer in known.items() if name in layers}
    beside = insert_qdq(
        _double(model, measured), [name + _QUANTIZED for name in measured], _doubled(scales), precision
    )
    session = ImageSession(_compared(at_batch_one(beside), measured))
    count, signal, noise = 0, np.zeros(len(measured)), np.zeros(len(measured))
    means: dict[str, np.ndarray] = {}
    weighted = [name for name, layer in measured.items() if layer.weight is not None]
    total = len(images) if isinstance(images, Sized) else 0
    for done, batch in enumerate(images, 1):
        for image in session.fit(batch):
            values = session.run(image)
            powers, channels = values[: 2 * len(measured)], values[2 * len(measured) :]
            signal += [float(v) for v in powers[::2]]
            noise += [float(v) for v in powers[1::2]]
            for name, mean in zip(weighted, channels, strict=True):
                means[name] = means.get(name, 0.0) + mean.astype(np.float64).ravel()
            count += 1
        if progress:
            progress("Measuring layers", done, total)
    if not count:
        raise CalibrationError("no images to measure layers on; pass at least one")
    broken = [name for name, finite in zip(measured, np.isfinite(signal + noise), strict=True) if not finite]
    if broken:
        raise CalibrationError(f"the output of '{broken[0]}' is not finite; mend the model's weights")
    return {
        name: LayerError(_decibels(s, n), means[name] / count if name in means else None)
        for name, s, n in zip(measured, signal, noise, strict=True)
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _doubled(scales: Scales) -> Scales:
    return Scales(
        scales.activations,
        scales.shifts,
        {name + _QUANTIZED: codes for name, codes in scales.weights.items()},
    )


def _double(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> onnx.ModelProto:
    """Return the graph with every layer there twice; the second's output is compared later."""
    graph = GraphEditor(model)
    for name in layers:
        node = graph.node(name)
        twin = NodeProto()
        twin.CopyFrom(node)
        twin.name = name + _QUANTIZED
        twin.output[0] = node.output[0] + _QUANTIZED
        graph.insert_after(node, [twin])
        graph.outputs.add(twin.output[0])
        shown = helper.make_tensor_value_info(twin.output[0], TensorProto.FLOAT, None)
        graph.model.graph.output.append(shown)
    return graph.finish()


def _compared(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> onnx.ModelProto:
    """Return the doubled graph with the comparisons as its only outputs.

    For each layer these are the sums of squares of output and error, and then for each with weights the error's mean by channel.
    """
    graph = GraphEditor(model)
    shapes = shapes_of(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    del graph.model.graph.output[:]
    outputs: list[str] = []
    means: list[str] = []
    nodes: list[NodeProto] = []
    for name, layer in layers.items():
        out = graph.node(name).output[0]
        difference = f"{name}/error"
        nodes.append(helper.make_node("Sub", [out + _QUANTIZED, out], [difference], difference))
        for source, label in ((out, "signal"), (difference, "noise")):
            result = f"{name}/{label}"
            nodes.append(helper.make_node("ReduceSumSquare", [source], [result], result, keepdims=0))
            outputs.append(result)
        if layer.weight is not None:
            rank = len(shapes[out])
            channels = 1 if layer.op_type == "Conv" else rank - 1
            axes = [axis for axis in range(rank) if axis != channels]
            result = f"{name}/mean"
            operands, attributes = [difference], {"axes": axes}
            if opset >= 18:
                operands.append(graph.add_constant(f"{name}/axes", np.array(axes, np.int64)))
                attributes = {}
            nodes.append(helper.make_node("ReduceMean", operands, [result], result, keepdims=0, **attributes))
            means.append(result)
    graph.nodes += nodes
    shown = [*outputs, *means]
    graph.model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in shown)
    graph.outputs = set(shown)
    return graph.finish()
