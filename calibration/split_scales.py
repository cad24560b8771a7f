"""One scale for all channels of a weight whose product is split.

A layer such as attention's qkv is one product whose result is split in three. TensorRT-RTX 1.7.1 multiplies it in 8 bits only if the whole
weight has one scale: with a scale a channel it widens the weight at every run, by a kernel of its own, and multiplies in 16 bits
(`engines.tensorrt.kernels` shows it). And whatever stands between the product and attention is one more kernel.

FP8 needs no scale a channel: a code has its own exponent. In INT8 one scale costs accuracy where channels differ, and attention lets most
of them be equal at no cost:

    queries and keys   a channel of q times a, the same channel of k divided by a: every q·k stays. `balance_queries_and_keys` chooses a so
                       that one scale does for all of them (after cross-layer equalization: Nagel et al., arXiv 1906.04721)
    values             keep a scale s_j a channel, but it is applied behind attention, in a `Mul` that joins the quantization there:
                       Σ w (x · (s_j c_j)) = s_j / p · Σ w (x · (p c_j)), codes c, the weight's one scale p, weights w of the softmax

Where there is no such attention, the channels' scales are taken out of the weight and put right behind the product, codes and result
staying what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper

from calibration.attention import Attention, Columns, find_attentions
from calibration.formats import FP8, GRIDS, float16_scale, weight_scale
from calibration.graph_editor import GraphEditor

_LEAST_SHARED = 2.0**-15  # of the largest scale: float16 holds the ratio


def balance_queries_and_keys(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """Return the graph with the channels of queries and keys scaled so that one scale for the weights of both costs least.

    Args:
        model: a float32 graph; it is not changed.
        layers: those that will be quantized. An attention whose own products are among them stays: its operands have scales that were
            observed.
    """
    graph = GraphEditor(model)
    for attention in _of_one_product(model, graph, layers):
        columns = (attention.queries, attention.keys)
        factor = _balance(*(_ranges_and_sizes(graph, part) for part in columns))
        for part, scale in zip(columns, (factor, 1 / factor), strict=True):
            node = graph.node(part.layer)
            weight = _weight(graph, part.layer).astype(np.float64)
            weight[:, part.slice] *= scale
            graph.replace_constant(node, 1, weight.astype(np.float32))
            if part.bias is not None:
                add = graph.node(part.bias)
                bias = graph.constant(add.input[1])
                graph.replace_constant(add, 1, (bias * scale.reshape(bias.shape)).astype(np.float32))
    return graph.finish()


def _ranges_and_sizes(graph: GraphEditor, part: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest weight of each channel, and how large the channel is with its bias where its inputs have a variance of 1."""
    weight = _weight(graph, part.layer)[:, part.slice].astype(np.float64)
    bias = 0.0
    if part.bias is not None:
        bias = graph.constant(graph.node(part.bias).input[1]).reshape(-1).astype(np.float64)
    return np.abs(weight).max(axis=0), np.sqrt(np.square(weight).sum(axis=0) + np.square(bias))


def _balance(queries: tuple[np.ndarray, np.ndarray], keys: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return what to multiply each channel of queries by, and to divide that of keys by.

    One scale rounds all weights alike, and in q·k what one side's channel is rounded by is multiplied by the other side's: both matter
    the same where both channels are as large. That is not at any price: the largest weight, which makes the scale, is left as small as
    can be. A channel of queries that is all bias stays: its keys would be rounded away.
    """
    (q_range, q_size), (k_range, k_size) = queries, keys
    usable = np.minimum(q_size, k_size) > 0
    factor = np.ones(len(usable))
    np.sqrt(k_size / np.where(usable, q_size, 1), out=factor, where=usable)
    largest = np.sqrt(q_range * k_range).max()
    if not largest:
        return factor
    most = np.divide(largest, q_range, out=np.full_like(factor, np.inf), where=q_range > 0)
    return np.clip(factor, k_range / largest, most)


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
        weight = _weight(graph, name)
        own = weight_scale(weight, 1, grid)
        told = weight.any(axis=0)  # a channel of zeros has a scale of nothing: 1
        if not told.any():
            continue
        largest = own[told].max()
        if grid is FP8:
            scales[name] = np.full_like(own, largest)
            continue
        others = np.ones(len(own), bool)
        others[values] = False
        # both factors of a value's scale are exact in float16
        shared = max(own[others & told].max(initial=0), float16_scale(largest * _LEAST_SHARED))
        ratio = float16_scale(np.where(told, own / shared, 1))
        scales[name] = np.where(others, shared, shared * ratio)
    return scales


def share_split_scales(model: ModelProto, plain: ModelProto | None = None) -> ModelProto:
    """Return the graph with one scale for each quantized weight whose product is split; one without such is returned as it is.

    Args:
        model: with Q/DQ nodes (`insert_qdq`), float32 beside; it is not changed.
        plain: the float32 graph that it was made of, to find attention in.
    """
    graph = GraphEditor(model)
    found = find_attentions(plain) if plain else ()
    # behind attention a value's scale would be its bias's too
    merged = {attention.values.layer: attention for attention in found if attention.values.bias is None}
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
        whole &= attention.values.bias is None
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
        told = graph.constant(codes).any(axis=0)  # a channel of zeros has a scale of nothing: 1
        shared = np.exp2(np.floor(np.log2(scales.max(where=told, initial=0) or 1))).astype(scales.dtype)
        ratio, place = np.where(told, scales / shared, 1).astype(scales.dtype), node
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
