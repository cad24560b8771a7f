"""One scale for all channels of a weight whose product is split, and the channels' own behind the product.

A layer such as attention's qkv is one product whose result is split in three. TensorRT-RTX 1.7.1 multiplies it in 8 bits only if the whole
weight has one scale: with a scale a channel it widens the weight at every run, by a kernel of its own, and multiplies in 16 bits
(`engines.tensorrt.kernels` shows it). So the channels' scales are taken out of the weight: with s_j of channel j, codes c and a power of
two p,

    x · (s_j c_j) = (x · (p c_j)) (s_j / p),

where p and the division are exact. Codes and scales stay what calibration chose; nothing is rounded but the product, once more.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from calibration.graph_editor import GraphEditor


def share_split_scales(model: ModelProto) -> ModelProto:
    """Return the graph with one scale for each quantized weight whose product is split; one without such is returned as it is.

    Args:
        model: with Q/DQ nodes (`insert_qdq`), float32 beside; it is not changed.
    """
    graph = GraphEditor(model)
    products = [node for node in graph.nodes if node.op_type == "MatMul" and _is_split(graph, node)]
    changed = [node for node in products if _share(graph, node)]
    return graph.finish() if changed else model


def _is_split(graph: GraphEditor, node: NodeProto) -> bool:
    """Whether a product's result, with its bias if it has one, is split."""
    readers = graph.readers(node.output[0])
    if len(readers) == 1 and readers[0].op_type == "Add" and any(map(graph.is_constant, readers[0].input)):
        readers = graph.readers(readers[0].output[0])
    return bool(readers) and all(reader.op_type == "Split" for reader in readers)


def _share(graph: GraphEditor, node: NodeProto) -> bool:
    """Move the scales of a product's weight behind it; False where it has none of its channels' own."""
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
    shared = np.exp2(np.floor(np.log2(scales.max()))).astype(scales.dtype)
    dequantize.input[1] = graph.add_constant(f"{scale}/shared", shared)
    dequantize.input[2] = graph.add_constant(f"{zero_point}/shared", graph.constant(zero_point)[0])
    del dequantize.attribute[:]
    ratio = graph.add_constant(f"{scale}/ratio", scales / shared)
    result, whole = node.output[0], graph.unique_name(f"{node.output[0]}/product")
    node.output[0] = whole
    label = graph.unique_name(f"{node.name}/rescale")
    graph.insert_after(node, [helper.make_node("Mul", [whole, ratio], [result], label)])
    return True
