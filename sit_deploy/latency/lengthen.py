"""More blocks for an exported graph: a block is copied, with weights of its own, as often as a stage is to have it.

Exporting and calibrating a model takes seconds a block, and blocks of a stage differ in their weights alone. So a graph with one
block a stage is made the way every build makes it, in whatever precision, and lengthened here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from sit_deploy.errors import InputError


def lengthen(model: onnx.ModelProto, copies: Mapping[int, int]) -> onnx.ModelProto:
    """Return a graph with more blocks; equal to what the exporter writes of the longer model, but for names and weights.

    Args:
        model: whose nodes are named after their modules (`sit_deploy.graph.export`); it is not changed.
        copies: of each block, how often it is to be there in all; 0 takes it out. The last block of a model is not as the others are: only the
            tokens that the head reads leave it.

    Raises:
        InputError: a block that does not take and give one tensor of tokens of the same shape.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:  # copies: what is read is changed in them
        nodes.append(NodeProto())
        nodes[-1].CopyFrom(node)
    del made.graph.node[:], made.graph.value_info[:]
    for block, count in sorted(copies.items()):
        if count == 0:
            _remove(nodes, constants, block)
        for copy in range(1, count):
            _insert(nodes, made.graph, constants, block, copy)
    made.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for place in reversed(range(len(made.graph.initializer))):
        if made.graph.initializer[place].name not in read:
            del made.graph.initializer[place]
    return made


@dataclass(frozen=True)
class _Block:
    """A block of a graph.

    Attributes:
        inside: its nodes, in order.
        outside: all others.
        taken: the tensor of tokens that it takes.
        given: the one that it gives.
    """

    inside: list[NodeProto]
    outside: list[NodeProto]
    taken: str
    given: str


def _find(nodes: list[NodeProto], constants: Mapping[str, TensorProto], block: int) -> _Block:
    prefix = f"blocks.{block}/"
    inside = [node for node in nodes if node.name.startswith(prefix)]
    outside = [node for node in nodes if not node.name.startswith(prefix)]
    if not inside:
        raise InputError(f"the graph has no nodes of block {block}; it is none that this release exported")
    made = {name for node in inside for name in node.output}
    known = made | constants.keys()
    # positions, which turn queries and keys, are read later than tokens
    taken = next((name for node in inside for name in node.input if name and name not in known), None)
    given = dict.fromkeys(name for node in outside for name in node.input if name in made)
    if taken is None or len(given) != 1:
        raise InputError(f"block {block} does not take and give one tensor of tokens; it cannot be repeated")
    return _Block(inside, outside, taken, *given)


def _reread(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]


def _remove(nodes: list[NodeProto], constants: Mapping[str, TensorProto], block: int) -> None:
    """Take a block out; what read it reads what it took."""
    found = _find(nodes, constants, block)
    _reread(found.outside, found.given, found.taken)
    nodes[:] = found.outside


def _insert(
    nodes: list[NodeProto],
    graph: onnx.GraphProto,
    constants: Mapping[str, TensorProto],
    block: int,
    copy: int,
) -> None:
    """Put a copy of a block behind it; what read the block reads the copy."""
    found = _find(nodes, constants, block)
    inside, given = found.inside, found.given
    elsewhere = {name for node in found.outside for name in node.input}

    def name(old: str) -> str:
        return f"copy.{copy}/{old}"

    renamed = {old: name(old) for node in inside for old in node.output} | {found.taken: given}
    for old in dict.fromkeys(old for node in inside for old in node.input if old in constants):
        if constants[old].data_type != TensorProto.INT64 and old not in elsewhere:  # shapes are shared
            graph.initializer.append(_other_weights(constants[old], name(old), copy))
            renamed[old] = name(old)
    clones = []
    for node in inside:
        clone = NodeProto()
        clone.CopyFrom(node)
        clone.name = name(node.name)
        clone.input[:] = [renamed.get(old, old) for old in node.input]
        clone.output[:] = [renamed[old] for old in node.output]
        clones.append(clone)
    _reread(found.outside, given, name(given))
    behind = 1 + max(place for place, node in enumerate(nodes) if node is inside[-1])
    nodes[behind:behind] = clones


def _other_weights(tensor: TensorProto, name: str, by: int) -> TensorProto:
    """Return the same values in other places, as a runtime may share what is equal."""
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(np.roll(values.reshape(-1), 17 * by).reshape(values.shape), name)
