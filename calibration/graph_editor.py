"""Editing a graph: its weights by name, its nodes by name, and what reads a tensor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.errors import CalibrationError


def without_weights(model: ModelProto) -> ModelProto:
    """Return the graph with its constants as inputs, but for the integers that shapes are inferred from.

    ONNX's functions take a model as bytes: a copy of every weight each time, which takes longer than all that they do.
    """
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in given:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def shapes_of(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every tensor that has one; an open dimension is None."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


class GraphEditor:
    """A copy of a model to edit; `finish()`, the last call, gives it checked and with shapes inferred anew."""

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self._initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._names = {node.name for node in self.nodes} | set(self._initializers)
        self._names |= {value.name for value in self.model.graph.input}
        self._names |= {name for node in self.nodes for name in node.output}
        self.outputs = {value.name for value in self.model.graph.output}

    def node(self, name: str) -> NodeProto:
        match = next((node for node in self.nodes if node.name == name), None)
        if match is None:
            raise CalibrationError(f"the graph has no node '{name}'; it is not the graph that was calibrated")
        return match

    def producer(self, tensor: str) -> NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def readers(self, tensor: str) -> list[NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def is_constant(self, name: str) -> bool:
        return name in self._initializers

    def constant(self, name: str) -> np.ndarray:
        """Return a copy of an initializer's values."""
        return numpy_helper.to_array(self._initializers[name]).copy()

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer, under `name` or one like it that is free; return its name."""
        name = self.unique_name(name)
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
        self._initializers[name] = tensor
        return name

    def replace_constant(self, node: NodeProto, position: int, values: np.ndarray) -> None:
        """Replace a node's constant operand; other readers of the old one (equal constants are shared) keep it."""
        old = node.input[position]
        values = np.ascontiguousarray(values)
        places = sum(list(reader.input).count(old) for reader in self.readers(old))
        if places == 1 and old not in self.outputs:
            self._initializers[old].CopyFrom(numpy_helper.from_array(values, old))
        else:
            node.input[position] = self.add_constant(old, values)

    def unique_name(self, name: str) -> str:
        """Return the name, or one like it, that no node or tensor has, and take it."""
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}.{count}"
        self._names.add(unique)
        return unique

    def insert_before(self, node: NodeProto, new: Iterable[NodeProto]) -> None:
        place = next(i for i, other in enumerate(self.nodes) if other is node)
        self.nodes[place:place] = new

    def insert_after(self, node: NodeProto, new: Iterable[NodeProto]) -> None:
        place = next(i for i, other in enumerate(self.nodes) if other is node)
        self.nodes[place + 1 : place + 1] = new

    def finish(self) -> ModelProto:
        """Return the model without constants that nothing reads.

        Raises:
            onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the edit went wrong.
        """
        graph = self.model.graph
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        used = {name for node in nodes for name in node.input} | self.outputs
        for index in reversed(range(len(graph.initializer))):
            if graph.initializer[index].name not in used:
                del graph.initializer[index]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        light = without_weights(self.model)
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred)
        del graph.output[:]
        graph.output.extend(inferred.graph.output)
        graph.value_info.extend(inferred.graph.value_info)
        return self.model


def find_bias(graph: GraphEditor, node: NodeProto) -> tuple[NodeProto, int] | None:
    """Return where a layer's bias is, as node and position: its own operand, or that of the one Add behind it."""
    if node.op_type in ("Conv", "Gemm"):
        return (node, 2) if len(node.input) > 2 and node.input[2] else None
    readers = graph.readers(node.output[0])
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in graph.outputs:
        return None
    other = 1 - list(readers[0].input).index(node.output[0])
    return (readers[0], other) if graph.is_constant(readers[0].input[other]) else None


def add_bias(graph: GraphEditor, node: NodeProto, amount: np.ndarray) -> None:
    """Add (channels,) to what a layer gives: to its bias where it has one, else with an Add of its own."""
    if (place := find_bias(graph, node)) is not None:
        reader, position = place
        bias = graph.constant(reader.input[position])
        graph.replace_constant(reader, position, (bias + amount).astype(np.float32))
    elif node.op_type in ("Conv", "Gemm"):
        del node.input[2:]
        node.input.append(graph.add_constant(f"{node.name}/bias", amount.astype(np.float32)))
    else:
        plain = graph.unique_name(f"{node.output[0]}/without_bias")
        name = graph.add_constant(f"{node.name}/bias/value", amount.astype(np.float32))
        new = helper.make_node("Add", [plain, name], [node.output[0]], graph.unique_name(f"{node.name}/bias"))
        node.output[0] = plain
        graph.insert_after(node, [new])
