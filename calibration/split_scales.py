"""One scale for all channels of a weight whose product is split.

A layer such as attention's qkv is one product whose result is split in three. TensorRT-RTX 1.7.1 multiplies it in 8 bits only if the whole
weight has one scale: with a scale a channel it widens the weight at every run, by a kernel of its own, and multiplies in 16 bits
(`engines.tensorrt.kernels` shows it). And whatever stands between the product and attention is one more kernel.

FP8 needs no scale a channel: a code has its own exponent. In INT8 one scale costs accuracy where channels differ, and attention lets most
of them be equal at no cost:

    queries and keys   a channel of q times a, the same channel of k divided by a: every q·k stays. `balance_queries_and_keys` chooses a so
                       that both have the same range, and then one scale does for all of them (cross-layer equalization: Nagel et al.,
                       arXiv 1906.04721)
    values             keep a scale s_j a channel, but it is applied behind attention, in a `Mul` that joins the quantization there:
                       Σ w (x · (s_j c_j)) = s_j / p · Σ w (x · (p c_j)), codes c, the weight's one scale p, weights w of the softmax

Where there is no such attention, the channels' scales are taken out of the weight and put right behind the product, codes and result
staying what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper

from calibration.attention import Attention, find_attentions
from calibration.formats import FP8, GRIDS, float16_scale, weight_scale
from calibration.graph_editor import GraphEditor


def balance_queries_and_keys(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """Return the graph with the channels of queries and keys scaled so that the weights of both have the same ranges.

    Args:
        model: a float32 graph; it is not changed.
        layers: those that will be quantized. An attention whose own products are among them stays: its operands have scales that were
            observed.
    """
    graph = GraphEditor(model)
    for attention in _of_one_product(model, graph, layers):
        columns = (attention.queries, attention.keys)
        ranges = [np.abs(_weight(graph, part.layer)[:, part.slice]).max(axis=0) for part in columns]
        usable = np.minimum(*ranges) > 0
        factor = np.ones(len(usable))
        factor[usable] = np.sqrt(ranges[1][usable].astype(np.float64) / ranges[0][usable])
        for part, scale in zip(columns, (factor, 1 / factor), strict=True):
            node = graph.node(part.layer)
            weight = _weight(graph, part.layer).astype(np.float64)
            weight[:, part.slice] *= scale
            graph.replace_constant(node, 1, weight.astype(np.float32))
            if part.bias is not None:
                (reader,) = graph.readers(part.bias)
                bias = graph.constant(part.bias)
                graph.replace_constant(reader, 1, (bias * scale.reshape(bias.shape)).astype(np.float32))
    return graph.finish()


def split_weight_scales(model: ModelProto, layers: Collection[str], precision: str) -> dict[str, np.ndarray]:
    """Return the scales of weights whose product is split, by layer, float32 (channels,); the other layers have those of `weight_scale`.

    Args:
        model: the float32 graph, queries and keys balanced.
        layers: those that will be quantized.
        precision: "int8" or "fp8".
    """
    graph, grid = GraphEditor(model), GRIDS[precision]
    scales: dict[str, np.ndarray] = {}
    for attention in _of_one_product(model, graph, layers):
        name, values = attention.values.layer, attention.values.slice
        own = weight_scale(_weight(graph, name), 1, grid)
        if grid is FP8:
            scales[name] = np.full_like(own, own.max())
            continue
        others = np.ones(len(own), bool)
        others[values] = False
        shared = own[others].max()
        # both factors of a value's scale are exact in float16
        scales[name] = np.where(others, shared, shared * float16_scale(own / shared))
    return scales


def share_split_scales(model: ModelProto, plain: ModelProto | None = None) -> ModelProto:
    """Return the graph with one scale for each quantized weight whose product is split; one without such is returned as it is.

    Args:
        model: with Q/DQ nodes (`insert_qdq`), float32 beside; it is not changed.
        plain: the float32 graph that it was made of, to find attention in.
    """
    graph = GraphEditor(model)
    merged = {attention.values.layer: attention for attention in (find_attentions(plain) if plain else ())}
    products = [node for node in graph.nodes if node.op_type == "MatMul" and _is_split(graph, node)]
    changed = [node for node in products if _share(graph, node, merged.get(node.name))]
    return graph.finish() if changed else model


def _of_one_product(model: ModelProto, graph: GraphEditor, layers: Collection[str]) -> Iterator[Attention]:
    """Yield the attentions whose queries, keys and values are all there is of one quantized product, and that are not quantized themselves.

    Of others nothing is gained: 8 bits inside attention have to be made of queries and keys in any case, and so has the form of the
    one query of a last block that has a product of its own.
    """
    for attention in find_attentions(model):
        parts = (attention.queries, attention.keys, attention.values)
        product, width = attention.values.layer, _weight(graph, attention.values.layer).shape[1]
        whole = all(part.layer == product for part in parts) and product in layers
        starts, stops = [part.start for part in parts], [part.stop for part in parts]
        inside = {attention.scores, attention.context} & set(layers)
        if whole and not inside and [*starts, width] == [0, *stops]:
            yield attention


def _weight(graph: GraphEditor, layer: str) -> np.ndarray:
    return graph.constant(graph.node(layer).input[1])


def _is_split(graph: GraphEditor, node: NodeProto) -> bool:
    """Whether a product's result, with its bias if it has one, is split."""
    readers = graph.readers(node.output[0])
    if len(readers) == 1 and readers[0].op_type == "Add" and any(map(graph.is_constant, readers[0].input)):
        readers = graph.readers(readers[0].output[0])
    return bool(readers) and all(reader.op_type == "Split" for reader in readers)


def _share(graph: GraphEditor, node: NodeProto, attention: Attention | None) -> bool:
    """Give a product's weight one scale; False where it has none of its channels' own."""
    dequantize = graph.producer(node.input[1])
    if (
        dequantize is None
        or dequantize.op_type != "DequantizeLinear"
        or len(graph.readers(node.input[1])) > 1
    ):
        return False
    codes, scale, zero_point = dequantize.input
    if not (
        graph.is_constant(codes) and graph.constant(scale).ndim == 1 and node.output[0] not in graph.outputs
    ):
        return False
    scales = graph.constant(scale)
    values = attention.values.slice if attention else slice(0, 0)
    others = np.delete(scales, np.arange(len(scales))[values])
    if len(others) and np.all(others == others[0]):
        shared, ratio, place = (
            others[0],
            scales[values] / others[0],
            graph.producer(attention.merged) if attention else None,
        )
    else:
        shared = np.exp2(np.floor(np.log2(scales.max()))).astype(scales.dtype)
        ratio, place = scales / shared, node
    dequantize.input[1] = graph.add_constant(f"{scale}/shared", np.asarray(shared))
    dequantize.input[2] = graph.add_constant(f"{zero_point}/shared", graph.constant(zero_point)[0])
    del dequantize.attribute[:]
    if place is not None and not np.all(ratio == 1):
        _multiply(graph, place, graph.add_constant(f"{scale}/ratio", ratio), f"{node.name}/rescale")
    return True


def _multiply(graph: GraphEditor, node: NodeProto, factor: str, name: str) -> None:
    """Multiply what a node gives by a constant, under the name that it had."""
    result, whole = node.output[0], graph.unique_name(f"{node.output[0]}/unscaled")
    node.output[0] = whole
    graph.insert_after(node, [helper.make_node("Mul", [whole, factor], [result], graph.unique_name(name))])
