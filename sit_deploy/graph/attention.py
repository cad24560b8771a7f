"""Attention as ONNX's one operator of that name, in place of the products, the softmax and the transposed keys that it is written as.

Opset 23 has it. TensorRT's parser (from release 10.14) makes an attention layer of it, which is one kernel or no engine, where it has to
recognise the products otherwise. What the operator does is what was there: `softmax(Q Kᵀ · scale) V` by heads, with a scale of 1, since
the deploy form has it in the weights of the queries. Its softmax has the type that a kernel gives it: TensorRT takes no
`softmax_precision`.

A single query stays written out. TensorRT-RTX 1.7.1 makes one kernel of that, and has none for the operator in some shapes (three heads of
64 channels): that ends the build.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, helper

_TRANSPOSED_KEYS, _KEYS = [0, 2, 3, 1], [0, 2, 1, 3]  # of (batch, tokens, heads, channels of a head)


def write_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every attention as one operator; names of its inputs and of its result stay.

    Attention of a single query stays as it is, and so does one whose products are quantized: nothing reaches the softmax inside an
    operator.

    Args:
        model: of opset 23 or newer, with shapes, in float32 beside its Q/DQ; it is not changed.
    """
    graph = model.graph
    queries = {v.name: v.type.tensor_type.shape.dim[-2].dim_value for v in graph.value_info if _rank(v) == 4}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in graph.output:
        readers.setdefault(value.name, []).append(NodeProto())  # who reads it is not in the graph

    replaced: dict[str, NodeProto] = {}  # by result
    gone: set[str] = set()
    for softmax in graph.node:
        if softmax.op_type != "Softmax":
            continue
        scores, mixed = makers.get(softmax.input[0]), _sole(readers, softmax.output[0])
        keys = makers.get(scores.input[1]) if scores is not None and scores.op_type == "MatMul" else None
        if not (
            mixed is not None
            and mixed.op_type == "MatMul"
            and mixed.input[0] == softmax.output[0]
            and _sole(readers, scores.output[0] if scores is not None else "") is softmax
            and keys is not None
            and _permutation(keys) == _TRANSPOSED_KEYS
            and _sole(readers, keys.output[0]) is scores
            and _last_axis(softmax)
            and queries.get(scores.output[0], 0) > 1
        ):
            continue
        name = f"{scores.name.rpartition('/')[0]}/attention".lstrip("/")
        operands = [scores.input[0], keys.output[0], mixed.input[1]]
        replaced[mixed.output[0]] = helper.make_node(
            "Attention", operands, list(mixed.output), name, scale=1.0
        )
        replaced[keys.output[0]] = helper.make_node(
            "Transpose", list(keys.input), list(keys.output), keys.name, perm=_KEYS
        )
        gone |= {scores.output[0], softmax.output[0]}
    if not replaced:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [replaced.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(kept)
    return onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)


def _sole(readers: dict[str, list[NodeProto]], name: str) -> NodeProto | None:
    """The one node that reads a tensor; None where there are none or several."""
    found = readers.get(name, [])
    return found[0] if len(found) == 1 else None


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _permutation(node: NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _last_axis(softmax: NodeProto) -> bool:
    return next((a.i for a in softmax.attribute if a.name == "axis"), -1) in (-1, 3)
