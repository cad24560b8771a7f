"""Looking at a graph and replacing nodes of it, for the rewrites that an ONNX Runtime engine gets."""

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
_STANDARD = ("", "ai.onnx")


class NodeIndex:
    """Who makes and who reads each tensor of a model, and its constants; nodes are replaced on `save`.

    What is asked is answered by the graph as it was at first.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
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
        self._new: dict[str, NodeProto | None] = {}
        self._retyped: set[str] = set()

    def nodes(self, *operators: str) -> Iterable[NodeProto]:
        return (node for node in self._nodes if any(is_operator(node, name) for name in operators))

    def producer(self, name: str, operator: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of that operator."""
        node = self._makers.get(name)
        return node if node is not None and is_operator(node, operator) else None

    def consumer(self, name: str, operator: str) -> NodeProto | None:
        """The only reader of a tensor, if it is of that operator."""
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and is_operator(readers[0], operator) else None

    def readers(self, name: str) -> list[NodeProto]:
        return self._readers.get(name, [])

    def is_output(self, name: str) -> bool:
        return name in self._kept

    def constant(self, name: str | None, *data_types: int) -> TensorProto | None:
        """A constant of one of these `TensorProto` types; None for anything else."""
        tensor = self._constants.get(name) if name else None
        if tensor is None or name in self._fed or tensor.data_type not in data_types:
            return None
        return tensor

    def array(self, name: str | None, *data_types: int) -> np.ndarray | None:
        """The values of such a constant."""
        tensor = self.constant(name, *data_types)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def float32_shape(self, name: str | None) -> tuple[int, ...] | None:
        """The shape of a float32 constant; None for anything else."""
        tensor = self.constant(name, TensorProto.FLOAT)
        return None if tensor is None else tuple(tensor.dims)

    def is_scalar(self, name: str | None, value: float) -> bool:
        """Whether a tensor is a float32 constant of one element, equal to `value` within float32 rounding."""
        shape = self.float32_shape(name)
        if shape is None or math.prod(shape) != 1:
            return False
        return bool(numpy_helper.to_array(self._constants[name]).item() == np.float32(value))

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant, under `name` or one like it that is free; returns the name it has.

        A constant of that name and value is taken as it is.
        """
        values = np.asarray(values)
        unique, count = name, 1
        while unique in self._constants or unique in self._makers or unique in self._fed:
            present = self.array(unique, helper.np_dtype_to_tensor_dtype(values.dtype))
            if present is not None and np.array_equal(present, values):
                return unique
            count += 1
            unique = f"{name}.{count}"
        self._graph.initializer.append(numpy_helper.from_array(values, unique))
        self._constants[unique] = self._graph.initializer[-1]
        return unique

    def is_closed(self, nodes: list[NodeProto]) -> bool:
        """Whether no other node, nor the graph itself, reads a result of `nodes` but the last one's."""
        inside = {node.output[0] for node in nodes}
        results = [name for node in nodes[:-1] for name in node.output]
        return not self._kept.intersection(results) and all(
            reader.output[0] in inside for name in results for reader in self.readers(name)
        )

    def replace(self, old: list[NodeProto], new: NodeProto) -> None:
        """Put `new` in the place of `old`, which are closed and whose last node makes the same output."""
        self._dead |= {node.output[0] for node in old}
        self._new[old[-1].output[0]] = new

    def replace_by_constant(self, old: NodeProto, values: np.ndarray) -> None:
        """Put a constant of the same name in the place of a node."""
        self._graph.initializer.append(numpy_helper.from_array(values, old.output[0]))
        self._dead.add(old.output[0])
        self._new[old.output[0]] = None

    def retype(self, name: str) -> None:
        """Forget the type that is written down for a tensor; it has changed."""
        self._retyped.add(name)

    def save(self) -> None:
        """Write the nodes back in an order that is still topological, without what nothing reads any more."""
        if not self._new:
            return
        nodes: list[NodeProto] = []
        used = set(self._kept)
        for node in reversed(self._nodes):
            current = node if node.output[0] not in self._dead else self._new.get(node.output[0])
            if current is not None and used.intersection(current.output):
                nodes.append(current)
                used.update(current.input)
        nodes.reverse()
        if any(node.domain == CONTRIB for node in nodes) and not any(
            entry.domain == CONTRIB for entry in self._model.opset_import
        ):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        outputs = {name for node in nodes for name in node.output} - self._retyped
        kept = {
            "node": nodes,
            "initializer": [t for t in self._graph.initializer if t.name in used | self._fed],
            "value_info": [value for value in self._graph.value_info if value.name in outputs],
        }
        for field, entries in kept.items():
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(entries)


def is_operator(node: NodeProto, operator: str) -> bool:
    """Whether a node is an operator of the standard set."""
    return node.op_type == operator and node.domain in _STANDARD


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or the default."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def other(node: NodeProto, name: str) -> str | None:
    """The operand of a binary operator that is not `name`; None if both are."""
    others = [operand for operand in node.input if operand != name]
    return others[0] if len(others) == 1 else None


def shapes(model: ModelProto) -> dict[str, Shape]:
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
    inferred = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        inferred[value.name] = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims
        )
    return inferred
