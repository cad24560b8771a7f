"""Makes the batch dimension of an exported graph an open one, with no arithmetic on shapes.

A graph is exported at EXPORTED images, and that number is in its shapes. Where the deploy form wrote it, the batch is the
first dimension of every tensor that is reshaped. A graph that PyTorch wrote of other code may have it anywhere, and copies
of a token for each image besides: that one is exported again at one image more, and what differs is the batch.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from sit_deploy.errors import InputError

EXPORTED = 2  # an exporter may treat a dimension of 1 as one to broadcast
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "MatMul"})


def open_batch(model: ModelProto) -> None:
    """Write the batch dimension of every Reshape as 0, "as the input's", in a graph that has the batch in front everywhere."""
    constants = {t.name: t for t in model.graph.initializer}
    shapes = {i for node in model.graph.node if node.op_type == "Reshape" for i in node.input[1:2]}
    for name in shapes:
        target = numpy_helper.to_array(constants[name]).copy()
        target[0] = 0
        constants[name].CopyFrom(numpy_helper.from_array(target, name))
    for node in model.graph.node:
        if node.op_type == "Reshape":
            del node.attribute[:]  # allowzero=1 would make the 0 an empty dimension


def open_batch_by_comparison(model: ModelProto, other: ModelProto) -> None:
    """Write `model` so that it is right for any batch, by what differs in `other`, which was exported at one image more.

    A Reshape that holds the batch gets a 0, "as the input's", or a -1; copies of a constant for each image become one that
    is broadcast, or the rows of a table that is added to tokens among zeros.

    Raises:
        InputError: the batch is in the graph in another way; names the node.
    """
    if [n.op_type for n in model.graph.node] != [n.op_type for n in other.graph.node]:
        raise InputError("this model's graph depends on how many images it is given, and cannot be deployed")
    here, there = _Values(model), _Values(other)
    nodes: list[NodeProto] = []
    for node, twin in zip(model.graph.node, other.graph.node, strict=True):
        if node.op_type == "Reshape":
            _open_reshape(node, here, twin, there)
            nodes.append(node)
        elif copies := [i for i, n in enumerate(node.input) if _is_copies(n, here, twin.input[i], there)]:
            nodes += _without_copies(node, copies, here)
        else:
            nodes.append(node)
            for name, twins in zip(node.input, twin.input, strict=True):
                if name in here.constants and not here.same(name, there, twins):
                    raise InputError(
                        f"'{node.name}' of this model's graph holds the number of images, and cannot be deployed"
                    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Values:
    """Constants and shapes of a graph of fixed shapes."""

    def __init__(self, model: ModelProto) -> None:
        self.graph: GraphProto = model.graph
        self.constants = {t.name: t for t in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.shapes: dict[str, tuple[int, ...]] = {
            value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        } | {t.name: tuple(t.dims) for t in model.graph.initializer}

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def add(self, name: str, value: np.ndarray) -> str:
        """Add a constant, under another name where there is one of that; return its name."""
        while name in self.constants:
            name += "_once"
        self.constants[name] = numpy_helper.from_array(value, name)
        self.graph.initializer.append(self.constants[name])
        return name

    def same(self, name: str, other: _Values, twin: str) -> bool:
        one, two = self.array(name), other.array(twin)
        return one.shape == two.shape and one.tobytes() == two.tobytes()


def _open_reshape(node: NodeProto, here: _Values, twin: NodeProto, there: _Values) -> None:
    target, other = here.array(node.input[1]).copy(), there.array(twin.input[1])
    differ = np.flatnonzero(target != other)
    made = here.shapes[node.output[0]]
    target = np.where(target == -1, made, target) if len(differ) and all(made) else target
    given = here.shapes[node.input[0]], there.shapes[twin.input[0]]
    for axis in differ:
        copied = axis < len(given[0]) and (given[0][axis], given[1][axis]) == (target[axis], other[axis])
        target[axis] = 0 if copied else -1
    if (target == -1).sum() > 1:
        raise InputError(
            f"'{node.name}' of this model's graph holds the number of images twice, and cannot be deployed"
        )
    if len(differ):
        node.input[1] = here.add(f"{node.name}/shape_of_any_batch", target)
    del node.attribute[:]  # allowzero=1 would make the 0 an empty dimension


def _is_copies(name: str, here: _Values, twin: str, there: _Values) -> bool:
    """Whether a tensor is a constant, once for each image."""
    return (
        name in here.constants
        and twin in there.constants
        and (here.shapes[name][:1], there.shapes[twin][:1]) == ((EXPORTED,), (EXPORTED + 1,))
        and here.shapes[name][1:] == there.shapes[twin][1:]
    )


def _without_copies(node: NodeProto, copies: list[int], here: _Values) -> list[NodeProto]:
    """Return the nodes that do as `node`, whose inputs number `copies` are copies of a constant for each image."""
    tables = {}
    for i in copies:
        rows = here.array(node.input[i])
        if not np.array_equal(rows[:1], rows[1:]):
            raise InputError(
                f"'{node.name}' of this model's graph takes images apart by their number, and cannot be deployed"
            )
        tables[i] = rows[:1]
    others = [i for i in range(len(node.input)) if i not in tables]
    if node.op_type in _BROADCASTING and len(others) == 1:
        (i,) = copies
        node.input[i] = here.add(
            f"{node.name}/{'weight' if node.op_type == 'MatMul' else 'value'}", tables[i]
        )
        return [node]
    axis = next((a.i for a in node.attribute if a.name == "axis"), None)
    if node.op_type == "Concat" and axis == 1 and len(others) == 1:
        return _padded(node, tables, others[0], here)
    raise InputError(
        f"'{node.name}' of this model's graph reads copies for each image, and cannot be deployed"
    )


def _padded(concat: NodeProto, tables: dict[int, np.ndarray], other: int, here: _Values) -> list[NodeProto]:
    """Return Pad(x) + table in place of Concat(constants, x, constants): x among rows of zeros, the constants in a table of zeros."""
    x, name = concat.input[other], concat.name
    zeros = np.zeros((1, *here.shapes[x][1:]), dtype=next(iter(tables.values())).dtype)
    rows = [tables.get(i, zeros) for i in range(len(concat.input))]
    before, after = (sum(r.shape[1] for r in part) for part in (rows[:other], rows[other + 1 :]))
    pads = np.zeros(2 * zeros.ndim, dtype=np.int64)
    pads[1], pads[zeros.ndim + 1] = before, after
    inputs = [x, here.add(f"{name}/pad/pads", pads)]
    table = here.add(f"{name}/value", np.concatenate(rows, axis=1))
    return [
        helper.make_node("Pad", inputs, [f"{name}/pad"], name=f"{name}/pad"),
        helper.make_node("Add", [f"{name}/pad", table], list(concat.output), name=name),
    ]
