"""SmoothQuant: outlier channels of an activation are made smaller, and the weights that read them larger.

SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", arXiv
2211.10438) divides channel c of an activation by s_c and multiplies row c of the weights that read it by s_c, with
s_c = max|x_c|^α / max|w_c|^(1-α). Nothing runs for it: the division goes into the affine part of the LayerNorm that makes
the activation, and for an attention's `proj` into the columns of the values.

Here every s_c is a power of two. Multiplying by one is exact, so the smoothed graph computes the same bits: products and
sums scale with their terms (short of overflow, or of subnormal numbers, below 1e-38). The nearest power of two is at most
√2 off, and a channel's range needs no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.errors import CalibrationError
from calibration.graph_editor import GraphEditor, shapes_of
from calibration.layers import Layer, find_layers

STRENGTH = 0.5  # the paper's α, "migration strength"
_LARGEST = 12  # exponents stay within ±12: the channels of a LayerNorm are not that far apart

_MOVES_TOKENS = ("Slice", "Reshape", "Squeeze", "Flatten")


@dataclass(frozen=True)
class SmoothingSite:
    """A place of a graph where scales can move between an activation and the weights that multiply it.

    Attributes:
        source: the node whose output channels are divided: a LayerNormalization, the product with its weight that ends a norm by
            root mean square, or the layer whose last output columns are the values that attention averages.
        tensor: the activation, channels last.
        readers: the layers that multiply it.
    """

    source: str
    tensor: str
    readers: tuple[str, ...]


def find_smoothing_sites(
    model: onnx.ModelProto, layers: Mapping[str, Layer] | None = None
) -> tuple[SmoothingSite, ...]:
    """Return every place of a graph where scales can move and every reader of the tensor takes part.

    Args:
        model: a float32 graph.
        layers: its layers, where they have been found already.
    """
    graph = _Search(model, find_layers(model) if layers is None else layers)
    sites = []
    for node in model.graph.node:
        if graph.is_affine(node) or graph.scales_norm(node):
            readers = graph.linears_after(node.output[0])
            if readers:
                sites.append(SmoothingSite(node.name, node.output[0], readers))
    for layer in graph.layers.values():
        source = graph.values_before(layer) if layer.weight is not None else None
        if source is not None:
            sites.append(SmoothingSite(source, layer.inputs[0], (layer.name,)))
    return tuple(sites)


def smoothing_exponents(
    model: onnx.ModelProto, site: SmoothingSite, channel_absmax: np.ndarray, strength: float = STRENGTH
) -> np.ndarray:
    """Return log2 of the factor that each channel is divided by, int (channels,); 0 on the geometric mean.

    Args:
        model: the float32 graph.
        site: one of its places.
        channel_absmax: the largest |x| of each channel of the site's tensor, (channels,).
        strength: how much of an activation's range moves to the weights; 0.5 shares it.

    Raises:
        CalibrationError: another number of channels.
    """
    readers = [node for node in model.graph.node if node.name in site.readers]
    constants = {t.name: t for t in model.graph.initializer if any(t.name == n.input[1] for n in readers)}
    weights = [
        np.abs(numpy_helper.to_array(constants[node.input[1]])).max(axis=1 - _input_axis(node))
        for node in readers
    ]
    weight = np.max(weights, axis=0).astype(np.float64)
    if channel_absmax.shape != weight.shape:
        raise CalibrationError(
            f"'{site.tensor}' has {len(weight)} channels, and {channel_absmax.shape} were observed; "
            "observe the graph that is smoothed"
        )
    # a channel that is 0 on one side has no scale to share
    usable = (channel_absmax > 0) & (weight > 0)
    exponents = np.zeros(len(weight), np.int64)
    if usable.any():
        wanted = strength * np.log2(channel_absmax[usable].astype(np.float64)) - (1 - strength) * np.log2(
            weight[usable]
        )
        exponents[usable] = np.clip(np.rint(wanted - wanted.mean()), -_LARGEST, _LARGEST)
    return exponents


def smooth(model: onnx.ModelProto, exponents: Mapping[SmoothingSite, np.ndarray]) -> onnx.ModelProto:
    """Return the graph with channel c of each site's tensor divided by 2^exponents[c]; its logits are the same bits.

    Args:
        model: the float32 graph; it is not changed.
        exponents: by site, int (channels,).

    Raises:
        CalibrationError: not one exponent for each channel.
    """
    graph = GraphEditor(model)
    for site, power in exponents.items():
        reader = graph.node(site.readers[0])
        channels = graph.constant(reader.input[1]).shape[_input_axis(reader)]
        if np.shape(power) != (channels,):
            raise CalibrationError(
                f"'{site.source}' has {channels} channels, and the calibration has exponents of shape "
                f"{np.shape(power)}; calibrate again"
            )
        factor = np.ldexp(np.float32(1), power).astype(np.float32)
        source = graph.node(site.source)
        if source.op_type == "LayerNormalization":
            for position in (1, 2):
                graph.replace_constant(source, position, graph.constant(source.input[position]) / factor)
        elif source.op_type == "Mul":
            position = int(graph.is_constant(source.input[1]))
            graph.replace_constant(source, position, graph.constant(source.input[position]) / factor)
        else:
            _divide_values(graph, source, factor)
        for name in site.readers:
            node = graph.node(name)
            weight = graph.constant(node.input[1])
            graph.replace_constant(node, 1, weight * (factor[:, None] if _input_axis(node) == 0 else factor))
    return graph.finish()


def _input_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a MatMul's or Gemm's weight that its input's channels are multiplied along."""
    return int(any(a.name == "transB" and a.i for a in node.attribute))


class _Search:
    """A graph with the lookups that finding smoothing sites needs."""

    def __init__(self, model: onnx.ModelProto, layers: Mapping[str, Layer]) -> None:
        self.layers, self.shapes = layers, shapes_of(model)
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def is_affine(self, norm: onnx.NodeProto) -> bool:
        """Say whether a LayerNormalization scales and shifts the last axis alone, by constants."""
        shape = self.shapes.get(norm.output[0])
        return (
            norm.op_type == "LayerNormalization"
            and len(norm.input) == 3
            and shape is not None
            and all(name in self.constants and self.shapes[name] == shape[-1:] for name in norm.input[1:])
        )

    def scales_norm(self, product: onnx.NodeProto) -> bool:
        """Say whether a Mul is the last step of a norm written out: x / sqrt(...), times a constant for each channel of the last axis."""
        if product.op_type != "Mul" or sum(name in self.constants for name in product.input) != 1:
            return False
        weight, x = sorted(product.input, key=lambda name: name not in self.constants)
        division = self._sole(x, "Div")
        root = division and self.producer.get(division.input[1])
        shape = self.shapes.get(product.output[0])
        return bool(root and shape) and root.op_type == "Sqrt" and self.shapes[weight] == shape[-1:]

    def linears_after(self, tensor: str) -> tuple[str, ...]:
        """Return the layers that multiply a tensor's channels; none if anything else reads them."""
        layers: list[str] = []
        if tensor in self.outputs:
            return ()
        for node in self.readers.get(tensor, []):
            if self._multiplies(node.name, tensor):
                layers.append(node.name)
            elif node.op_type in _MOVES_TOKENS and self._keeps_channels(node):
                further = self.linears_after(node.output[0])
                if not further:
                    return ()
                layers += further
            else:
                return ()
        return tuple(layers)

    def values_before(self, layer: Layer) -> str | None:
        """Return the layer that makes the values which attention averages into `layer`'s input, if it is made like that.

        softmax · V, heads side by side again; V the last part of qkv or kv, cut into heads. Channel c of V is then channel
        c of the layer's input.
        """
        if not self._multiplies(layer.name, layer.inputs[0]):
            return None
        merged = self._sole(layer.inputs[0], "Reshape")
        mixed = merged and self._sole(merged.input[0], "Transpose")
        product = mixed and self._sole(mixed.input[0], "MatMul")
        softmax = product and self.producer.get(product.input[0])
        heads = product and self._sole(product.input[1], "Transpose")
        cut = heads and self._sole(heads.input[0], "Reshape")
        split = cut and self._sole(cut.input[0], "Split")
        if not split or not softmax or softmax.op_type != "Softmax" or split.output[-1] != cut.input[0]:
            return None
        channels = self.shapes[layer.inputs[0]][-1]
        shape = self.shapes.get(cut.output[0], ())
        if (
            [list(a.ints) for node in (heads, mixed) for a in node.attribute if a.name == "perm"]
            != [[0, 2, 1, 3]] * 2
            or len(shape) != 4
            or None in shape[2:]
            or shape[2] * shape[3] != channels
            or self.shapes[cut.input[0]][-1] != channels
        ):
            return None
        before_split = self._sole(split.input[0], "Add", "MatMul")
        if before_split is not None and before_split.op_type == "Add":
            values = [name for name in before_split.input if name not in self.constants]
            biases = [name for name in before_split.input if name in self.constants]
            if len(biases) != 1 or self.shapes[biases[0]][-1:] != self.shapes[split.input[0]][-1:]:
                return None
            before_split = self._sole(values[0], "MatMul")
        source = self.layers.get(before_split.name) if before_split is not None else None
        return source.name if source is not None and source.weight is not None else None

    def _multiplies(self, name: str, tensor: str) -> bool:
        layer = self.layers.get(name)
        return (
            layer is not None
            and layer.weight is not None
            and layer.op_type != "Conv"
            and layer.inputs == (tensor,)
        )

    def _sole(self, tensor: str, *op_types: str) -> onnx.NodeProto | None:
        """Return what makes a tensor if it is one of these operators and one node alone reads the tensor."""
        node = self.producer.get(tensor)
        sole = len(self.readers.get(tensor, ())) == 1 and tensor not in self.outputs
        return node if sole and node is not None and node.op_type in op_types else None

    def _keeps_channels(self, node: onnx.NodeProto) -> bool:
        """Say whether a node that moves tokens leaves the last axis alone."""
        before, after = self.shapes.get(node.input[0]), self.shapes.get(node.output[0])
        return bool(before and after) and before[-1] == after[-1] is not None


def _divide_values(graph: GraphEditor, source: onnx.NodeProto, factor: np.ndarray) -> None:
    """Divide the last output columns of a layer, and of the bias added to them."""
    weight = graph.constant(source.input[1])
    weight[:, -len(factor) :] /= factor
    graph.replace_constant(source, 1, weight)
    (reader,) = graph.readers(source.output[0])
    if reader.op_type == "Add":
        position = int(graph.is_constant(reader.input[1]))
        bias = graph.constant(reader.input[position])
        bias[-len(factor) :] /= factor
        graph.replace_constant(reader, position, bias)
