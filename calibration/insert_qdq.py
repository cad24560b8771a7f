"""Inserting Q/DQ into a graph: a QuantizeLinear and a DequantizeLinear wherever a layer that is to run in 8 bits reads.

Activations have one scale a tensor, weights one an output channel; both are symmetric, with a zero point of 0, which is
what TensorRT takes. Biases stay as they are. The types in the graph say everything: no runtime has a switch to set.

A tensor that is far from symmetric, as GELU's output is, [-0.17, max], would waste half of its codes. It is shifted: a
constant c is subtracted before it is quantized, and c·Σw is added to the bias, which is exact:

    W·x = W·(x - c) + c·W·1
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, helper

from calibration.errors import CalibrationError
from calibration.formats import GRIDS, Grid, broadcast_along, scale_of_layer
from calibration.graph_editor import GraphEditor, add_bias
from calibration.layers import Layer, find_layers


@dataclass(frozen=True)
class Scales:
    """What the layers' operands are quantized with.

    Attributes:
        activations: scales by tensor name.
        shifts: by tensor name, the multiple of its scale that is subtracted first, where that is not 0
            (`calibration.formats.shifted_scale`).
        weights: by layer name, codes in place of the nearest ones (`calibration.gptq`), for the scales of its channels.
        channels: by layer name, scales of its weight's output channels in place of those that `weight_scale` gives.
    """

    activations: Mapping[str, float]
    shifts: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def offset(self, tensor: str) -> float:
        """Return what is subtracted from a tensor before it is quantized."""
        return self.shifts.get(tensor, 0) * self.activations[tensor]


def insert_qdq(
    model: onnx.ModelProto, layers: Collection[str], scales: Scales, precision: str = "int8"
) -> onnx.ModelProto:
    """Return the graph with the operands of some layers quantized; its names, inputs and outputs stay.

    Args:
        model: a float32 graph; it is not changed.
        layers: names of layers of `find_layers`.
        scales: of every tensor that is quantized.
        precision: "int8", or "fp8" for E4M3.

    Raises:
        CalibrationError: an unknown layer or precision, a tensor without a scale that is above 0 and finite, a shift where
            nothing takes it back, or an operator set that has no such codes (FP8: 19).
    """
    grid = GRIDS.get(precision)
    if grid is None:
        raise CalibrationError(f"'{precision}' is not one of {', '.join(GRIDS)}")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < (13 if precision == "int8" else 19):
        raise CalibrationError(
            f"{precision} needs operator set {13 if precision == 'int8' else 19}, and the graph declares {opset}; "
            "export it with a newer one (--opset 20)"
        )
    known = find_layers(model)
    if unknown := sorted(set(layers) - known.keys()):
        raise CalibrationError(
            f"the graph has no layer '{unknown[0]}'; plan and graph do not belong together"
        )
    writer = _Writer(GraphEditor(model), grid, scales)
    for name, layer in known.items():
        if name in layers:
            writer.quantize(layer)
    return writer.graph.finish()


class _Writer:
    def __init__(self, graph: GraphEditor, grid: Grid, scales: Scales) -> None:
        self.graph, self.grid, self.scales = graph, grid, scales
        # tensor and padding -> its dequantized form
        self._quantized: dict[tuple[str, tuple[int, ...]], str] = {}

    def quantize(self, layer: Layer) -> None:
        node = self.graph.node(layer.name)
        shift = self.scales.shifts.get(layer.inputs[0], 0)
        if layer.weight is None and any(self.scales.shifts.get(name) for name in layer.inputs):
            raise CalibrationError(
                f"'{layer.name}' has no weight that takes the shift of '{', '.join(layer.inputs)}' back; "
                "scale its operands without a shift"
            )
        if layer.weight is not None:
            codes, scale = self._weight(layer, node)
            if shift:
                others = tuple(axis for axis in range(codes.ndim) if axis != layer.channel_axis)
                total = codes.astype(np.float64).sum(axis=others) * scale
                add_bias(self.graph, node, self.scales.offset(layer.inputs[0]) * total)
        pads = self._take_padding(node) if shift and node.op_type == "Conv" else ()
        for position, name in zip(layer.operands, layer.inputs, strict=True):
            node.input[position] = self._activation(name, pads)

    def _weight(self, layer: Layer, node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Quantize a layer's weight; return its codes and scales."""
        g, axis = self.graph, layer.channel_axis
        weight = g.constant(layer.weight)
        scale = scale_of_layer(layer.name, weight, axis, self.grid, self.scales.channels)
        codes = self.scales.weights.get(layer.name)
        if codes is None:
            codes = self.grid.weight_codes(weight, broadcast_along(scale, axis, weight.ndim))
        elif codes.shape != weight.shape:
            raise CalibrationError(
                f"the codes of '{layer.name}' are {codes.shape}, its weight {weight.shape}"
            )
        name = layer.weight
        operands = [
            g.add_constant(f"{name}/codes", codes.astype(self.grid.dtype)),
            g.add_constant(f"{name}/scale", scale),
            g.add_constant(f"{name}/zero_point", np.zeros(scale.shape, self.grid.dtype)),
        ]
        node.input[1] = g.unique_name(f"{name}/dequantized")
        label = g.unique_name(f"{name}/dequantize")
        g.insert_before(
            node, [helper.make_node("DequantizeLinear", operands, [node.input[1]], label, axis=axis)]
        )
        return codes, scale

    def _take_padding(self, node: NodeProto) -> tuple[int, ...]:
        """Take a convolution's padding from it, to be done before: a shifted 0 is not 0."""
        if any(a.name == "auto_pad" and a.s != b"NOTSET" for a in node.attribute):
            raise CalibrationError(f"'{node.name}' pads automatically; export it with its pads written out")
        attribute = next((a for a in node.attribute if a.name == "pads"), None)
        if attribute is None or not any(attribute.ints):
            return ()
        pads = tuple(attribute.ints)
        attribute.CopyFrom(helper.make_attribute("pads", [0] * len(pads)))
        return pads

    def _activation(self, name: str, pads: tuple[int, ...]) -> str:
        """Quantize a tensor, once for all layers that read it alike; return the name of its dequantized form."""
        if (name, pads) in self._quantized:
            return self._quantized[name, pads]
        g = self.graph
        scale = self.scales.activations.get(name, math.nan)
        if not 0 < scale < math.inf:
            raise CalibrationError(
                f"'{name}' has no usable scale ({scale}); calibrate the graph that is quantized"
            )
        nodes, source = [], name
        if offset := self.scales.offset(name):
            minus = g.add_constant(f"{name}/minus_shift", np.float32(-offset))
            nodes.append(
                helper.make_node(
                    "Add", [source, minus], [g.unique_name(f"{name}/shifted")], g.unique_name(f"{name}/shift")
                )
            )
            source = nodes[-1].output[0]
            if pads:
                half = len(pads) // 2
                amounts = g.add_constant(
                    f"{name}/pads", np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
                )
                nodes.append(
                    helper.make_node(
                        "Pad",
                        [source, amounts, minus],
                        [g.unique_name(f"{name}/padded")],
                        g.unique_name(f"{name}/pad"),
                    )
                )
                source = nodes[-1].output[0]
        constants = [
            g.add_constant(f"{name}/scale", np.float32(scale)),
            g.add_constant(f"{name}/zero_point", np.zeros((), self.grid.dtype)),
        ]
        codes, out = g.unique_name(f"{name}/quantized"), g.unique_name(f"{name}/dequantized")
        nodes += [
            helper.make_node(
                "QuantizeLinear", [source, *constants], [codes], g.unique_name(f"{name}/quantize")
            ),
            helper.make_node(
                "DequantizeLinear", [codes, *constants], [out], g.unique_name(f"{name}/dequantize")
            ),
        ]
        maker = g.producer(name)
        if maker is None:  # the graph's input
            g.nodes[0:0] = nodes
        else:
            g.insert_after(maker, nodes)
        self._quantized[name, pads] = out
        return out
