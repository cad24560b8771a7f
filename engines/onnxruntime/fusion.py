"""Graph fusions for ONNX Runtime on a CPU: exact, and applied to the engine file only.

    attention  MatMul (→ Add) → Split → heads → QKᵀ → Softmax → ·V → heads joined   →  com.microsoft Attention
               the same with a MatMul of INT8 operands                              →  com.microsoft QAttention
    gelu       x · (½ · (1 + erf(x / √2))), as it is written below opset 20         →  com.microsoft Gelu
    INT8       see `engines.onnxruntime.int8`

ONNX Runtime's own fusions look for other spellings and leave these as they are. Attention reads its packed
weights head by head, so the split and the three transpositions are gone, not only merged; Gelu is one pass over
memory instead of five.

Patterns are recognised by operators, constants and inferred shapes, never by names. Whatever is not certain
(another type, a mask, an intermediate result used elsewhere) stays as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from engines.head_biases import join_head_biases
from engines.onnxruntime.int8 import Product, fold_conv_weights, fuse_int8_products, match_product
from engines.onnxruntime.node_index import CONTRIB, NodeIndex, Shape, attribute, other, shapes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class _Attention:
    """Attention to replace: the nodes of it, and its projection by float32 weights or, if `product`, by INT8 ones."""

    old: list[NodeProto]
    project: NodeProto
    product: Product | None
    bias: str | None
    heads: int
    width: int  # of queries, keys and values together


def fuse_for_cpu(model: ModelProto) -> dict[str, int]:
    """Apply every fusion to `model` in place; returns how often each one was applied."""
    join_head_biases(model)  # attention is looked for with its bias behind the projection
    return {
        # first: it looks for the Q/DQ form, and for shapes that ONNX can infer
        "attention": fuse_attention(model),
        "gelu": fuse_gelu(model),
        "int8_products": fuse_int8_products(model),
        "float_conv_weights": fold_conv_weights(model),
    }


def fuse_attention(model: ModelProto) -> int:
    """Replace unmasked self-attention with packed float32 or INT8 `qkv` weights and pre-scaled queries.

    Matches x (B, N, K) @ W (K, 3·H·D), plus a bias (3·H·D,), or none, split in three equal parts of the last axis, each
    seen as (B, N, H, D).
    """
    graph = NodeIndex(model)
    inferred = shapes(model)
    fused = 0
    for softmax in list(graph.nodes("Softmax")):
        match = _match_attention(graph, inferred, softmax)
        if match is not None:
            graph.replace(match.old, _attention_node(graph, match, softmax.name))
            fused += 1
    graph.save()
    return fused


def fuse_gelu(model: ModelProto) -> int:
    """Replace the exact (erf) GELU spelled out in operators, in any order of each operator's operands."""
    graph = NodeIndex(model)
    fused = 0
    for erf in list(graph.nodes("Erf")):
        match = _match_gelu(graph, erf)
        if match is not None:
            graph.replace(*match)
            fused += 1
    graph.save()
    return fused


def _match_attention(graph: NodeIndex, shapes: dict[str, Shape], softmax: NodeProto) -> _Attention | None:
    """The attention around `softmax`."""
    scores = graph.producer(softmax.input[0], "MatMul")
    context = graph.consumer(softmax.output[0], "MatMul")
    if scores is None or context is None or attribute(softmax, "axis", None) not in (-1, 3):
        return None
    if context.input[0] != softmax.output[0]:
        return None
    # as (B, H, N, D), the keys as (B, H, D, N)
    permutations = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    transposes = [graph.producer(name, "Transpose") for name in (*scores.input, context.input[1])]
    joined = graph.consumer(context.output[0], "Transpose")
    if joined is None or any(node is None for node in transposes):
        return None
    wanted = zip((*transposes, joined), (*permutations, [0, 2, 1, 3]), strict=True)
    if any(attribute(node, "perm", None) != permutation for node, permutation in wanted):
        return None
    reshapes = [graph.producer(node.input[0], "Reshape") for node in transposes]
    output = graph.consumer(joined.output[0], "Reshape")
    if output is None or any(node is None for node in reshapes):
        return None
    parts = [node.input[0] for node in reshapes]
    split = graph.producer(parts[0], "Split")
    if split is None or list(split.output) != parts:
        return None
    add = graph.producer(split.input[0], "Add")
    biases = [name for name in add.input if graph.float32_shape(name)] if add else []
    product = split.input[0] if add is None else other(add, *biases) if len(biases) == 1 else None
    project = graph.producer(product, "MatMul") if product else None
    if project is None:
        return None
    int8 = match_product(graph, project)
    if int8 is None and graph.float32_shape(project.input[1]) is None:
        return None

    heads = shapes.get(reshapes[0].output[0], ())
    if len(heads) != 4 or None in heads or not all(isinstance(size, int) for size in heads[1:]):
        return None
    batch, tokens, number, size = heads
    expected = {
        project.input[1]: (shapes.get(project.input[0], (None,))[-1], 3 * number * size),
        project.output[0]: (batch, tokens, 3 * number * size),
        output.output[0]: (batch, tokens, number * size),
        **{name: (batch, tokens, number * size) for name in parts},
        **{node.output[0]: heads for node in reshapes},
    }
    if any(shapes.get(name) != shape for name, shape in expected.items()):
        return None
    if len(shapes.get(project.input[0], ())) != 3:
        return None
    if biases and graph.float32_shape(biases[0]) != (3 * number * size,):
        return None
    projection = [project, split] if add is None else [project, add, split]
    old = [*projection, *reshapes, *transposes, scores, softmax, context, joined, output]
    if not graph.is_closed(old):
        return None
    return _Attention(old, project, int8, biases[0] if biases else None, number, 3 * number * size)


def _attention_node(graph: NodeIndex, match: _Attention, name: str) -> NodeProto:
    # QAttention has no form without a bias, and Attention's crashes the process in ONNX Runtime 1.23 and older
    zeros = np.zeros(match.width, np.float32)
    bias = match.bias or graph.add_constant(f"zero_bias/{match.width}", zeros)
    if match.product is None:
        inputs = [*match.project.input, bias]
    else:
        p = match.product.operands(graph)
        inputs = [
            p["codes"],
            p["weight"],
            bias,
            p["scale"],
            p["weight_scale"],
            "",
            p["zero_point"],
            p["weight_zero_point"],
        ]
    return helper.make_node(
        "Attention" if match.product is None else "QAttention",
        inputs,
        list(match.old[-1].output),
        name=name,
        domain=CONTRIB,
        num_heads=match.heads,
        scale=1.0,  # left out, it would be D ** -0.5
    )


def _match_gelu(graph: NodeIndex, erf: NodeProto) -> tuple[list[NodeProto], NodeProto] | None:
    """The nodes of the GELU around `erf` and the node that replaces them."""
    divide = graph.producer(erf.input[0], "Div")
    if divide is None or not graph.is_scalar(divide.input[1], math.sqrt(2)):
        return None
    x = divide.input[0]
    plus_one = graph.consumer(erf.output[0], "Add")
    if plus_one is None or not graph.is_scalar(other(plus_one, erf.output[0]), 1.0):
        return None
    halved = graph.consumer(plus_one.output[0], "Mul")
    if halved is None or not graph.is_scalar(other(halved, plus_one.output[0]), 0.5):
        return None
    product = graph.consumer(halved.output[0], "Mul")
    if product is None or other(product, halved.output[0]) != x:
        return None
    gelu = helper.make_node("Gelu", [x], [product.output[0]], name=erf.name, domain=CONTRIB)
    old = [divide, erf, plus_one, halved, product]
    return (old, gelu) if graph.is_closed(old) else None
