"""Biases that are added head by head, moved to the product that makes the heads.

In a deployed graph what is left of attention's biases is added behind the cut into heads, where TensorRT-RTX wants it. A runtime on a
CPU adds a bias for nothing where a product ends, and finds attention by that form.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnx


def join_head_biases(model: onnx.ModelProto) -> int:
    """Move biases of heads to where the tensor that is cut into heads is made: the same sums, in place.

    Add(Transpose(Reshape(x)), bias), heads first and the float32 bias (heads, 1, channels of a head), becomes
    Transpose(Reshape(Add(x, bias))). Where x is a part of a Split, the Add goes before that, with zeros for the other parts.

    Returns:
        How many biases were moved.
    """
    graph = _Graph(model)
    moved: dict[str, np.ndarray] = {}  # by the tensor that is added to, a bias for each of its channels
    sources: dict[str, NodeProto] = {}  # by that tensor, the addition whose name the new one gets
    gone: set[str] = set()
    for add in model.graph.node:
        cut = graph.cut_into_heads(add)
        if cut is None:
            continue
        reshape, transpose = cut
        bias = numpy_helper.to_array(graph.constants[add.input[1]]).reshape(-1)
        target, width, start = graph.target(reshape.input[0], len(bias))
        if target not in moved:
            moved[target], sources[target] = np.zeros(width, bias.dtype), add
        moved[target][start : start + len(bias)] += bias
        gone.add(add.output[0])
        transpose.output[0] = add.output[0]
    if not moved:
        return 0
    nodes = []
    for node in model.graph.node:
        if node.output[0] in gone and node.op_type == "Add":
            continue
        copy = NodeProto()
        copy.CopyFrom(node)
        nodes.append(copy)
        for target in set(node.output) & moved.keys():
            before, bias = f"{target}/before_bias", f"{target}/head_biases"
            model.graph.initializer.append(numpy_helper.from_array(moved[target], bias))
            copy.output[list(copy.output).index(target)] = before
            nodes.append(helper.make_node("Add", [before, bias], [target], sources[target].name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return len(gone)


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(output.name for output in graph.output)

    def cut_into_heads(self, add: NodeProto) -> tuple[NodeProto, NodeProto] | None:
        """Return the Reshape and the Transpose whose result an addition of a bias a head reads, and nothing else."""
        bias = self.constants.get(add.input[1]) if add.op_type == "Add" else None
        if bias is None or bias.data_type != TensorProto.FLOAT or len(bias.dims) != 3 or bias.dims[1] != 1:
            return None
        transpose = self.makers.get(add.input[0])
        if transpose is None or transpose.op_type != "Transpose" or self.uses[add.input[0]] != 1:
            return None
        reshape = self.makers.get(transpose.input[0])
        if reshape is None or reshape.op_type != "Reshape" or self.uses[transpose.input[0]] != 1:
            return None
        orders = [list(a.ints) for a in transpose.attribute if a.name == "perm"]
        shape = self.constants.get(reshape.input[1])
        if orders != [[0, 2, 1, 3]] or shape is None or reshape.input[0] not in self.makers:
            return None
        # (batch, tokens, channels) cut into its heads; nothing else has as many dimensions
        heads = numpy_helper.to_array(shape).tolist()
        one_reader = self.uses[reshape.input[0]] == 1
        return (reshape, transpose) if heads[2:] == [bias.dims[0], bias.dims[2]] and one_reader else None

    def target(self, name: str, channels: int) -> tuple[str, int, int]:
        """Return what to add to in place of a tensor, how many channels that has, and where those of the tensor begin."""
        split = self.makers[name]
        if split.op_type == "Split" and self.uses[split.input[0]] == 1 and split.input[0] in self.makers:
            axis = next((a.i for a in split.attribute if a.name == "axis"), 0)
            sizes = self.constants.get(split.input[1]) if len(split.input) > 1 else None
            equal = sizes is None or set(numpy_helper.to_array(sizes).tolist()) == {channels}
            if axis in (-1, 2) and equal:
                parts = list(split.output)
                return split.input[0], len(parts) * channels, parts.index(name) * channels
        return name, channels, 0
