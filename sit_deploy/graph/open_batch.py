"""Makes the batch dimension of an exported graph an open one, with no arithmetic on shapes.

A graph is exported at EXPORTED images, and its Reshapes and Expands hold that number. Where the batch alone is in front it
becomes a 0, "as the input's"; where it is counted together with something else, as windows of images are, a -1.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from sit_deploy.errors import InputError

EXPORTED = 2  # an exporter may treat a dimension of 1 as one to broadcast
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


def open_batch(model: ModelProto) -> None:
    """Write the graph so that it is right for any batch; it was exported at EXPORTED images.

    Raises:
        InputError: a tensor whose shape holds the batch where no graph of a fixed form can say so.
    """
    shapes = _shapes(model)
    _Expands(model.graph, shapes).drop()
    constants = {t.name: t for t in model.graph.initializer}
    wanted: dict[str, dict[str, np.ndarray]] = {}  # constant → node that reshapes by it → what it should be
    for node in model.graph.node:
        if node.op_type == "Reshape":
            target = numpy_helper.to_array(constants[node.input[1]])
            opened = _target(node, target, shapes.get(node.input[0]), shapes.get(node.output[0]))
            wanted.setdefault(node.input[1], {})[node.name] = opened
            del node.attribute[:]  # allowzero=1 would make the 0 an empty dimension
    for name, by_node in wanted.items():
        first = next(iter(by_node.values()))
        constants[name].CopyFrom(numpy_helper.from_array(first, name))
        for node in model.graph.node:
            own = by_node.get(node.name)
            if own is not None and not np.array_equal(own, first):
                node.input[1] = f"{node.name}/shape_{len(constants)}"
                constants[node.input[1]] = numpy_helper.from_array(own, node.input[1])
                model.graph.initializer.append(constants[node.input[1]])


def _target(
    node: NodeProto, target: np.ndarray, given: tuple[int, ...] | None, made: tuple[int, ...] | None
) -> np.ndarray:
    """Return the target of a Reshape from `given` to `made`, both at EXPORTED images."""
    if not given or not made or given[0] == made[0]:
        opened = target.copy()
        opened[0] = 0
        return opened
    if made[0] % EXPORTED or not all(made):
        raise InputError(
            f"this model cannot be exported with an open batch: '{node.name}' has the batch elsewhere than first"
        )
    return np.array([-1, *made[1:]], dtype=target.dtype)


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return values | {t.name: tuple(t.dims) for t in graph.initializer}


class _Expands:
    """Copies of a constant for each image, and writing them away: what reads them broadcasts it, or takes it into rows of zeros."""

    def __init__(self, graph: GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph, self.shapes = graph, shapes
        self.constants = {t.name: t for t in graph.initializer}
        # name of the copies → of the constant
        self.source = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Expand" and node.input[0] in self.constants
        }

    def drop(self) -> None:
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            if node.op_type in _BROADCASTING and not self.source.keys() >= set(node.input):
                node.input[:] = [self.source.get(name, name) for name in node.input]
            if node.op_type == "Concat" and (tables := self._tables(node)) is not None:
                nodes += self._padded(node, *tables)
            else:
                nodes.append(node)
        if len(nodes) == len(self.graph.node) and not self.source:
            return
        used = {name for node in nodes for name in node.input} | {value.name for value in self.graph.output}
        kept = [node for node in nodes if node.output[0] in used or node.output[0] not in self.source]
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _tables(self, concat: NodeProto) -> tuple[list[np.ndarray], int] | None:
        """Return the constants among a Concat's inputs, None for what is none, and where that is; None if it is not of this kind."""
        (axis,) = [a.i for a in concat.attribute if a.name == "axis"]
        tables = [
            numpy_helper.to_array(self.constants[self.source[name]]) if name in self.source else None
            for name in concat.input
        ]
        others = [i for i, table in enumerate(tables) if table is None]
        right = all(table is None or (table.ndim == 3 and table.shape[0] == 1) for table in tables)
        return (tables, others[0]) if axis == 1 and len(others) == 1 and right else None

    def _padded(self, concat: NodeProto, tables: list[np.ndarray], other: int) -> list[NodeProto]:
        """Write Concat(constants, x, constants) as Pad(x) + table: x among rows of zeros, and the constants in a table of zeros."""
        before, after = (sum(t.shape[1] for t in part) for part in (tables[:other], tables[other + 1 :]))
        x, name = concat.input[other], concat.output[0]
        zeros = np.zeros((1, *self.shapes[x][1:]), dtype=tables[other - 1].dtype)
        table = np.concatenate([*tables[:other], zeros, *tables[other + 1 :]], axis=1)
        pads = np.array([0, before, 0, 0, after, 0], dtype=np.int64)
        for value, of in ((pads, f"{concat.name}/pad/pads"), (table, f"{concat.name}/value")):
            self.graph.initializer.append(numpy_helper.from_array(value, of))
        padded = f"{concat.name}/pad"
        return [
            helper.make_node("Pad", [x, f"{padded}/pads"], [padded], name=padded),
            helper.make_node("Add", [padded, f"{concat.name}/value"], [name], name=concat.name),
        ]
