"""Graph fusions for ONNX Runtime on a CPU: exact, and applied to the engine file only.

    attention  MatMul (→ Add) → Split → heads → QKᵀ → Softmax → ·V → heads joined   →  com.microsoft Attention
    gelu       x · (½ · (1 + erf(x / √2))), as it is written below opset 20  →  com.microsoft Gelu

ONNX Runtime's own fusions look for other spellings and leave both as they are. Attention reads its packed
weights head by head, so the split and the three transpositions are gone, not only merged; Gelu is one pass over
memory instead of five.

Patterns are recognised by operators, constants and inferred shapes, never by names. Whatever is not certain
(another type, a mask, an intermediate result used elsewhere) stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CONTRIB = "com.microsoft"
Shape = tuple["int | str | None", ...]


def fuse_for_cpu(model: ModelProto) -> dict[str, int]:
    """Apply every fusion to `model` in place; returns how often each one was applied."""
    counts = {"attention": fuse_attention(model), "gelu": fuse_gelu(model)}
    if any(counts.values()) and not any(entry.domain == CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return counts


def fuse_attention(model: ModelProto) -> int:
    """Replace unmasked self-attention with packed float32 `qkv` weights and pre-scaled queries.

    Matches x (B, N, K) @ W (K, 3·H·D), plus a bias (3·H·D,) or none, split in three equal parts of the last axis, each
    seen as (B, N, H, D).
    """
    graph = _Graph(model)
    shapes = _shapes(model)
    fused = 0
    for softmax in list(graph.nodes("Softmax")):
        match = _match_attention(graph, shapes, softmax)
        if match is not None:
            old, attention = match
            fused += graph.replace(old, attention)
    graph.save()
    return fused


def fuse_gelu(model: ModelProto) -> int:
    """Replace the exact (erf) GELU spelled out in operators, in any order of each operator's operands."""
    graph = _Graph(model)
    fused = 0
    for erf in list(graph.nodes("Erf")):
        match = _match_gelu(graph, erf)
        if match is not None:
            old, gelu = match
            fused += graph.replace(old, gelu)
    graph.save()
    return fused


def _match_attention(
    graph: _Graph, shapes: dict[str, Shape], softmax: NodeProto
) -> tuple[list[NodeProto], NodeProto] | None:
    """The nodes of the attention around `softmax` and the node that replaces them."""
    scores = graph.producer(softmax.input[0], "MatMul")
    context = graph.consumer(softmax.output[0], "MatMul")
    if scores is None or context is None or _attribute(softmax, "axis", None) not in (-1, 3):
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
    if any(_attribute(node, "perm", None) != permutation for node, permutation in wanted):
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
    product = split.input[0] if add is None else _other(add, *biases) if len(biases) == 1 else None
    project = graph.producer(product, "MatMul") if product else None
    if project is None or graph.float32_shape(project.input[1]) is None:
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
    attention = helper.make_node(
        "Attention",
        [project.input[0], project.input[1], *biases],
        [output.output[0]],
        name=softmax.name,
        domain=CONTRIB,
        num_heads=number,
        scale=1.0,  # left out, it would be D ** -0.5
    )
    return old, attention


def _match_gelu(graph: _Graph, erf: NodeProto) -> tuple[list[NodeProto], NodeProto] | None:
    """The nodes of the GELU around `erf` and the node that replaces them."""
    divide = graph.producer(erf.input[0], "Div")
    if divide is None or not graph.is_scalar(divide.input[1], math.sqrt(2)):
        return None
    x = divide.input[0]
    plus_one = graph.consumer(erf.output[0], "Add")
    if plus_one is None or not graph.is_scalar(_other(plus_one, erf.output[0]), 1.0):
        return None
    halved = graph.consumer(plus_one.output[0], "Mul")
    if halved is None or not graph.is_scalar(_other(halved, plus_one.output[0]), 0.5):
        return None
    product = graph.consumer(halved.output[0], "Mul")
    if product is None or _other(product, halved.output[0]) != x:
        return None
    gelu = helper.make_node("Gelu", [x], [product.output[0]], name=erf.name, domain=CONTRIB)
    return [divide, erf, plus_one, halved, product], gelu


class _Graph:
    """Who makes and who reads each tensor of a model, and its constants; nodes are replaced on `save`."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._nodes = list(model.graph.node)
        self._makers = {name: node for node in self._nodes for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._kept = {value.name for value in model.graph.output}
        # An initializer that is also an input may be fed another value.
        self._fed = {value.name for value in model.graph.input}
        self._dead: set[str] = set()  # nodes by their first output
        self._new: dict[str, NodeProto] = {}

    def nodes(self, operator: str) -> Iterable[NodeProto]:
        return (node for node in self._nodes if _is(node, operator))

    def producer(self, name: str, operator: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of that operator."""
        node = self._makers.get(name)
        return node if node is not None and _is(node, operator) else None

    def consumer(self, name: str, operator: str) -> NodeProto | None:
        """The only reader of a tensor, if it is of that operator."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and _is(readers[0], operator) else None

    def float32_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a float32 constant; None for anything else."""
        tensor = self._constants.get(name)
        if tensor is None or name in self._fed or tensor.data_type != TensorProto.FLOAT:
            return None
        return tuple(tensor.dims)

    def is_scalar(self, name: str | None, value: float) -> bool:
        """Whether a tensor is a float32 constant of one element, equal to `value` within float32 rounding."""
        shape = self.float32_shape(name) if name else None
        if shape is None or math.prod(shape) != 1:
            return False
        return bool(numpy_helper.to_array(self._constants[name]).item() == np.float32(value))

    def replace(self, old: list[NodeProto], new: NodeProto) -> bool:
        """Put `new` in the place of `old`, whose last node makes the same output.

        Returns False, and does nothing, where another node or the graph itself reads a result in between.
        """
        inside = {node.output[0] for node in old}
        for node in old[:-1]:
            for name in node.output:
                readers = self._readers.get(name, [])
                if name in self._kept or any(reader.output[0] not in inside for reader in readers):
                    return False
        self._dead |= inside
        self._new[old[-1].output[0]] = new
        return True

    def save(self) -> None:
        """Write the nodes back, in an order that is still topological."""
        if not self._new:
            return
        nodes = []
        gone = set()
        for node in self._nodes:
            if node.output[0] not in self._dead:
                nodes.append(node)
            elif node.output[0] in self._new:
                nodes.append(self._new[node.output[0]])
            else:
                gone.update(node.output)
        values = [value for value in self._graph.value_info if value.name not in gone]
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(nodes)
        self._graph.value_info.extend(values)


def _is(node: NodeProto, operator: str) -> bool:
    return node.op_type == operator and node.domain in ("", "ai.onnx")


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _other(node: NodeProto, name: str) -> str | None:
    """The operand of a binary operator that is not `name`; None if both are."""
    others = [operand for operand in node.input if operand != name]
    return others[0] if len(others) == 1 else None


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """The shapes that ONNX infers; an open dimension is its symbol, an unknown one None.

    Inference copies the model, so it is given one whose weights are declared and not there.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.node.extend(model.graph.node)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:  # the shapes that Reshape and the like read
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims
        )
    return shapes
