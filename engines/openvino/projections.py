"""What is rewritten of a graph before OpenVINO takes it: it splits a tensor by copying, which two products less would not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnx


def split_projections(model: onnx.ModelProto) -> int:
    """Turn every product with constant weights whose result is only split along its channels into a product for each part.

    Queries, keys and values come from one product, which OpenVINO then takes apart with a copy; three products write them
    where they are wanted. The numbers are the same. Changes the model; returns how many products were split.

    Quantized weights (DequantizeLinear of constants) are split with their scales, and a bias with its product.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for output in graph.output:
        uses[output.name] = uses.get(output.name, 0) + 1
    replaced: dict[str, list[NodeProto]] = {}  # by the name of a Split's first output
    gone: set[str] = set()  # first outputs of nodes that go
    added: list[TensorProto] = []
    for split in graph.node:
        chain = _projection(split, makers, constants, uses) if split.op_type == "Split" else None
        if chain is None:
            continue
        sizes = _sizes(split, constants, chain[0], makers)
        if sizes is None:
            continue
        nodes: list[NodeProto] = []
        for index, (start, stop) in enumerate(sizes):
            part = _Part(index, start, stop, constants, added)
            nodes += part.nodes(chain, split.output[index], makers)
        replaced[split.output[0]] = nodes
        gone |= {node.output[0] for node in chain}
    if not replaced:
        return 0
    kept = [node for node in graph.node if node.output[0] not in gone]
    rebuilt = [new for node in kept for new in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(rebuilt)
    graph.initializer.extend(added)
    _drop_unused(model)
    return len(replaced)


def _projection(
    split: NodeProto, makers: dict[str, NodeProto], constants: dict[str, TensorProto], uses: dict[str, int]
) -> list[NodeProto] | None:
    """Return the product, and the addition of its bias if there is one, whose result nothing but the Split reads."""
    # tokens are (batch, tokens, channels), and every projection is of those
    if next((a.i for a in split.attribute if a.name == "axis"), 0) not in (-1, 2):
        return None
    node = makers.get(split.input[0])
    if node is None or uses[split.input[0]] != 1:
        return None
    chain = [node]
    if node.op_type == "Add" and node.input[1] in constants:
        before = makers.get(node.input[0])
        if before is None or uses[node.input[0]] != 1:
            return None
        chain = [before, node]
    product = chain[0]
    if product.op_type != "MatMul":
        return None
    weight = product.input[1]
    low = makers.get(weight)
    quantized = low is not None and low.op_type == "DequantizeLinear" and low.input[0] in constants
    if weight not in constants and not quantized:
        return None
    return chain


def _sizes(
    split: NodeProto, constants: dict[str, TensorProto], product: NodeProto, makers: dict[str, NodeProto]
) -> list[tuple[int, int]] | None:
    """Return first and last channel of every part; None where they are not constant."""
    weight = product.input[1]
    codes = weight if weight in constants else makers[weight].input[0]
    channels = constants[codes].dims[-1]
    if len(split.input) > 1 and split.input[1]:
        if split.input[1] not in constants:
            return None
        sizes = numpy_helper.to_array(constants[split.input[1]]).tolist()
    else:
        sizes = [channels // len(split.output)] * len(split.output)
    if sum(sizes) != channels:
        return None
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


class _Part:
    """Some of a product's output channels."""

    def __init__(
        self, index: int, start: int, stop: int, constants: dict[str, TensorProto], added: list[TensorProto]
    ) -> None:
        self._index, self._channels = index, slice(start, stop)
        self._constants, self._added = constants, added

    def nodes(self, chain: list[NodeProto], output: str, makers: dict[str, NodeProto]) -> Iterator[NodeProto]:
        product = chain[0]
        weight = product.input[1]
        if weight not in self._constants:
            low = makers[weight]
            names = [self._cut(name) for name in low.input]
            weight = self._named(low.output[0])
            node = NodeProto()
            node.CopyFrom(low)
            del node.input[:], node.output[:]
            node.input.extend(names)
            node.output.append(weight)
            node.name = self._named(low.name)
            yield node
        else:
            weight = self._cut(weight)
        whole = output if len(chain) == 1 else self._named(product.output[0])
        yield helper.make_node("MatMul", [product.input[0], weight], [whole], self._named(product.name))
        for bias in chain[1:]:
            cut = self._cut(bias.input[1])
            yield helper.make_node("Add", [whole, cut], [output], self._named(bias.name))

    def _named(self, name: str) -> str:
        return f"{name}/{self._index}"

    def _cut(self, name: str) -> str:
        """Return the name of this part of a constant; one value for all channels is taken as it is."""
        values = numpy_helper.to_array(self._constants[name])
        if values.ndim == 0 or values.shape[-1] == 1:
            return name
        part = numpy_helper.from_array(np.ascontiguousarray(values[..., self._channels]), self._named(name))
        if part.name not in {tensor.name for tensor in self._added}:
            self._added.append(part)
        return part.name


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants, and dequantizations of constants, that nothing reads any more."""
    graph = model.graph
    wanted = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    nodes = [n for n in graph.node if n.op_type != "DequantizeLinear" or n.output[0] in wanted]
    del graph.node[:]
    graph.node.extend(nodes)
    wanted = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
