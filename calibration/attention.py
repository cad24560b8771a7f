"""Where a graph has attention, and which columns of which weights make its queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from calibration.graph_editor import shapes_of


@dataclass(frozen=True)
class Columns:
    """Some of the output channels of a product with constant weights (inputs, outputs).

    Attributes:
        layer: the product's name.
        start, stop: the channels.
        bias: the node that adds a constant (heads, 1, channels of a head), its second operand, to them as heads; None where there is none.
    """

    layer: str
    start: int
    stop: int
    bias: str | None = None

    @property
    def slice(self) -> slice:
        """The channels."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Attention:
    """softmax(Q·Kᵀ)·V of queries, keys and values that products with constant weights make, cut into heads.

    Attributes:
        scores: the product Q·Kᵀ, by name.
        context: the product with V, by name.
        queries, keys, values: what makes them.
        merged: the tensor of the averaged values, heads side by side again.
    """

    scores: str
    context: str
    queries: Columns
    keys: Columns
    values: Columns
    merged: str


def find_attentions(model: onnx.ModelProto) -> Iterator[Attention]:
    """Yield every attention of a float32 graph that is as `Attention` says, with nothing in between but layout and biases of heads."""
    graph = _Graph(model)
    for node in model.graph.node:
        found = graph.attention(node) if node.op_type == "Softmax" else None
        if found is not None:
            yield found


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.shapes = shapes_of(model)
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def attention(self, softmax: NodeProto) -> Attention | None:
        scores, context = self._maker(softmax.input[0], "MatMul"), self._reader(softmax.output[0], "MatMul")
        if scores is None or context is None or context.input[0] != softmax.output[0]:
            return None
        turned = self._reader(context.output[0], "Transpose")
        merged = turned and _order(turned) == [0, 2, 1, 3] and self._reader(turned.output[0], "Reshape")
        queries = self._columns(scores.input[0], [0, 2, 1, 3])
        keys = self._columns(scores.input[1], [0, 2, 3, 1])
        values = self._columns(context.input[1], [0, 2, 1, 3])
        if not merged or queries is None or keys is None or values is None:
            return None
        width = {part.stop - part.start for part in (queries, keys, values)}
        if width != {self.shapes.get(merged.output[0], (None,))[-1]} or keys.bias is not None:
            return None
        return Attention(scores.name, context.name, queries, keys, values, merged.output[0])

    def _columns(self, tensor: str, order: list[int]) -> Columns | None:
        """Follow heads back to the columns of the product that makes them."""
        add = self._maker(tensor, "Add")
        if add is not None:
            if add.input[1] not in self.constants:
                return None
            tensor = add.input[0]
        turned = self._maker(tensor, "Transpose")
        cut = self._maker(turned.input[0], "Reshape") if turned and _order(turned) == order else None
        heads = self.shapes.get(cut.output[0], ()) if cut else ()
        if len(heads) != 4 or None in heads[2:]:
            return None
        width = heads[2] * heads[3]
        if add is not None and tuple(self.constants[add.input[1]].dims) != (heads[2], 1, heads[3]):
            return None
        source, start = cut.input[0], 0
        split = self._maker(source, "Split")
        if split is not None:
            sizes = [self.shapes.get(name, (None,))[-1] for name in split.output]
            axis = next((a.i for a in split.attribute if a.name == "axis"), 0)
            if None in sizes or axis not in (-1, len(self.shapes[source]) - 1):
                return None
            start, source = sum(sizes[: list(split.output).index(source)]), split.input[0]
        product = self._maker(source, "MatMul")
        if (
            product is None
            or product.input[1] not in self.constants
            or self.shapes[source][-1] < start + width
        ):
            return None
        alone = (
            len(self.readers[product.input[1]]) == 1
        )  # another product of these weights would change with it
        return Columns(product.name, start, start + width, add and add.name) if alone else None

    def _maker(self, tensor: str, op_type: str) -> NodeProto | None:
        """Return what makes a tensor that one node alone reads, if it is of that operator."""
        node = self.makers.get(tensor)
        sole = len(self.readers.get(tensor, ())) == 1 and tensor not in self.outputs
        return node if node is not None and node.op_type == op_type and sole else None

    def _reader(self, tensor: str, op_type: str) -> NodeProto | None:
        """Return the one node that reads a tensor, if it is of that operator."""
        readers = self.readers.get(tensor, [])
        sole = len(readers) == 1 and tensor not in self.outputs
        return readers[0] if sole and readers[0].op_type == op_type else None


def _order(transpose: NodeProto) -> list[int]:
    return next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [])
