"""The error that 8 bits make in each layer by itself: its quantized form runs beside it, on the inputs of the float graph.

One pass over the images and one graph measure all layers at once; every comparison is reduced inside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from calibration.errors import CalibrationError
from calibration.graph_editor import GraphEditor, shapes_of
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layers import Layer, find_layers
from calibration.session import ImageSession, Progress, at_batch_one

_QUANTIZED = "/quantized"
_NOTHING = 1e-30  # power below which a token is as good as 0


@dataclass(frozen=True)
class LayerError:
    """A layer's own error over the images.

    Attributes:
        sqnr_db: power of its output over that of the error, in dB; infinite where there is no error, and minus infinite where
            there is nothing else.
        mean: the error's mean for each output channel, quantized less float, float64 (channels,); None for a layer without
            weights.
        token_db: the same ratio taken token by token (position by position) and then averaged in dB. Where a few tokens hold most
            of the power, `sqnr_db` tells of these alone, and this of the others.
        channel_db: the same ratio taken for every output channel alone, the median of the channels: where a few channels hold most
            of the power of every token, this tells of the others.
    """

    sqnr_db: float
    mean: np.ndarray | None
    token_db: float = math.inf
    channel_db: float = math.inf

    @property
    def worst_db(self) -> float:
        """What is left of what was kept worst: the few tokens and channels with most of the power, or the many with the rest."""
        return min(self.sqnr_db, self.token_db, self.channel_db)


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
    count, signal, noise, tokens = 0, *np.zeros((3, len(measured)))
    moments: dict[str, np.ndarray] = {}
    weighted = [name for name, layer in measured.items() if layer.weight is not None]
    total = len(images) if isinstance(images, Sized) else 0
    for done, batch in enumerate(images, 1):
        for image in session.fit(batch):
            values = session.run(image)
            powers, channels = values[: 3 * len(measured)], values[3 * len(measured) :]
            signal += [float(v) for v in powers[::3]]
            noise += [float(v) for v in powers[1::3]]
            tokens += [float(v) for v in powers[2::3]]
            for i, name in enumerate(weighted):
                seen = np.stack([v.astype(np.float64).ravel() for v in channels[3 * i : 3 * i + 3]])
                moments[name] = moments.get(name, 0.0) + seen
            count += 1
        if progress:
            progress("Measuring layers", done, total)
    if not count:
        raise CalibrationError("no images to measure layers on; pass at least one")
    broken = [name for name, finite in zip(measured, np.isfinite(signal + noise), strict=True) if not finite]
    if broken:
        raise CalibrationError(f"the output of '{broken[0]}' is not finite; mend the model's weights")
    found = {}
    for name, s, n, t in zip(measured, signal, noise, tokens, strict=True):
        token_db = float(10 * t / count / math.log(10)) if n else math.inf
        found[name] = LayerError(_decibels(s, n), None, token_db)
        if name in moments:
            mean, error, output = moments[name] / count
            found[name] = replace(found[name], mean=mean, channel_db=_median_decibels(output, error))
    return found


def _median_decibels(output: np.ndarray, error: np.ndarray) -> float:
    """Return the median over channels of the output's power over the error's, in dB; channels without one of them left out."""
    told = (error > 0) & (output > 0)
    return float(np.median(10 * np.log10(output[told] / error[told]))) if told.any() else math.inf


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _doubled(scales: Scales) -> Scales:
    return Scales(
        scales.activations,
        scales.shifts,
        {name + _QUANTIZED: codes for name, codes in scales.weights.items()},
        {name + _QUANTIZED: channels for name, channels in scales.channels.items()},
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

    For each layer these are the sums of squares of output and error and the mean over tokens of the logarithm of their ratio;
    and then for each with weights by channel the error's mean, the error's mean square and the output's.
    """
    graph = GraphEditor(model)
    shapes = shapes_of(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    del graph.model.graph.output[:]
    outputs: list[str] = []
    moments: list[str] = []
    nodes: list[NodeProto] = []
    for name, layer in layers.items():
        out = graph.node(name).output[0]
        difference = f"{name}/error"
        nodes.append(helper.make_node("Sub", [out + _QUANTIZED, out], [difference], difference))
        for source, label in ((out, "signal"), (difference, "noise")):
            result = f"{name}/{label}"
            nodes.append(helper.make_node("ReduceSumSquare", [source], [result], result, keepdims=0))
            outputs.append(result)
        rank = len(shapes[out])
        channels = 1 if layer.op_type == "Conv" else rank - 1
        nodes += _token_ratio(graph, name, out, difference, channels, opset)
        outputs.append(nodes[-1].output[0])
        if layer.weight is not None:
            others = [axis for axis in range(rank) if axis != channels]
            moments.append(f"{name}/error_mean")
            nodes.append(_reduce(graph, "ReduceMean", difference, moments[-1], others, opset))
            for source, label in ((difference, "error"), (out, "output")):
                squared = f"{name}/{label}_squared"
                moments.append(f"{name}/{label}_power")
                nodes += [
                    helper.make_node("Mul", [source, source], [squared], squared),
                    _reduce(graph, "ReduceMean", squared, moments[-1], others, opset),
                ]
    graph.nodes += nodes
    shown = [*outputs, *moments]
    graph.model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in shown)
    graph.outputs = set(shown)
    return graph.finish()


def _reduce(
    graph: GraphEditor, op_type: str, source: str, result: str, axes: Sequence[int], opset: int
) -> NodeProto:
    """Return a node that reduces some axes away: they are an input from operator set 18 on."""
    operands, attributes = [source], {"axes": axes}
    if opset >= 18:
        operands, attributes = [source, graph.add_constant(f"{result}/axes", np.array(axes, np.int64))], {}
    return helper.make_node(op_type, operands, [result], result, keepdims=0, **attributes)


def _token_ratio(
    graph: GraphEditor, name: str, out: str, difference: str, channels: int, opset: int
) -> list[NodeProto]:
    """Return the nodes that compare output and error token by token; the last gives the mean of log(signal / noise)."""
    nodes, logarithms = [], []
    nothing = graph.add_constant(f"{name}/nothing", np.float32(_NOTHING))
    for source, label in ((out, "token_signal"), (difference, "token_noise")):
        power, floored, logarithm = (f"{name}/{label}{part}" for part in ("", "_floored", "_log"))
        nodes += [
            _reduce(graph, "ReduceSumSquare", source, power, [channels], opset),
            helper.make_node("Max", [power, nothing], [floored], floored),
            helper.make_node("Log", [floored], [logarithm], logarithm),
        ]
        logarithms.append(logarithm)
    ratio, mean = f"{name}/token_ratio", f"{name}/token_mean"
    nodes += [
        helper.make_node("Sub", logarithms, [ratio], ratio),
        helper.make_node("ReduceMean", [ratio], [mean], mean, keepdims=0),
    ]
    return nodes
