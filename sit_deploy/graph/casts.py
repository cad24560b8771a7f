"""Casts of a strongly typed graph: where they go so that they are fewest, and writing them in."""

from __future__ import annotations

from collections import deque
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sit_deploy.graph.inspect import TensorInfo

NUMPY_TYPES = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
TAGS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def round_to(values: np.ndarray, dtype: int) -> np.ndarray:
    """Round to a low type: to nearest even, and to infinity beyond its largest value."""
    with np.errstate(over="ignore"):
        return values.astype(NUMPY_TYPES[dtype])


def fewest_casts(
    graph: onnx.GraphProto,
    info: dict[str, TensorInfo],
    types: dict[int, int],
    free: list[int],
    low: int,
) -> dict[int, int]:
    """Choose FP32 or low for the free nodes so that the graph needs as few Casts as possible.

    A tensor costs one Cast if some reader is of the other type than its producer, however many such readers it has.
    Two labels and such costs make this a minimum cut, which is exact. Among cuts of equally many Casts the one that
    casts the fewest elements wins, and then the one with the most low nodes.
    """
    fp32, half = "fp32", "low"  # the two terminals; a free node is its index
    capacity: dict[Any, dict[Any, int]] = {fp32: {}, half: {}}

    def place(index: int) -> Any:
        return index if index not in types else (fp32 if types[index] == TensorProto.FLOAT else half)

    def connect(tail: Any, head: Any, amount: int) -> None:
        capacity.setdefault(tail, {})[head] = capacity.get(tail, {}).get(head, 0) + amount
        capacity.setdefault(head, {}).setdefault(tail, 0)

    participating = types.keys() | set(free)
    readers: dict[str, set[Any]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input if index in participating else ():
            readers.setdefault(name, set()).add(place(index))
    for value in graph.output:
        readers.setdefault(value.name, set()).add(fp32)
    origin: dict[str, Any] = {value.name: fp32 for value in graph.input}
    for index, node in enumerate(graph.node):
        origin.update(dict.fromkeys(node.output, place(index)) if index in participating else {})
    floats = [n for n in origin if n in info and info[n].dtype == TensorProto.FLOAT]
    one_cast = 1 + sum(info[name].elements for name in floats)
    endless = one_cast * (len(floats) + 1) * 2
    for name in floats:
        source, others = origin[name], readers.get(name, set()) - {origin[name]}
        if not others:
            continue
        cost = one_cast + info[name].elements
        down, up = ("down", name), ("up", name)
        connect(source, down, cost)  # paid if the source is FP32 and a reader low
        connect(up, source, cost)  # paid if the source is low and a reader FP32
        for reader in sorted(others, key=str):
            connect(down, reader, endless)
            connect(reader, up, endless)
    fp32_side = _minimum_cut(capacity, fp32, half)
    return {index: TensorProto.FLOAT if index in fp32_side else low for index in free}


def _minimum_cut(capacity: dict[Any, dict[Any, int]], source: Any, sink: Any) -> set[Any]:
    """Return the source side of a minimum cut, the smallest such side (Edmonds and Karp; `capacity` is used up)."""
    while True:
        came_from: dict[Any, Any] = {source: None}
        queue = deque([source])
        while queue and sink not in came_from:
            vertex = queue.popleft()
            for neighbour, room in capacity[vertex].items():
                if room > 0 and neighbour not in came_from:
                    came_from[neighbour] = vertex
                    queue.append(neighbour)
        if sink not in came_from:
            return set(came_from)
        path, head = [], sink
        while came_from[head] is not None:
            path.append((came_from[head], head))
            head = came_from[head]
        flow = min(capacity[tail][head] for tail, head in path)
        for tail, head in path:
            capacity[tail][head] -= flow
            capacity[head][tail] += flow


class CastWriter:
    """Rewrites a graph in place to the types decided: weights, Casts and value_info."""

    def __init__(
        self, graph: onnx.GraphProto, info: dict[str, TensorInfo], low: int, types: dict[int, int]
    ) -> None:
        self.graph, self.info, self.low, self.types = graph, info, low, types
        self.casts = 0
        self.weight_counts = (0, 0, 0)
        self._weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
        self._taken = {n.name for n in graph.node} | info.keys()
        self._outputs = {value.name for value in graph.output}
        self._held_in: dict[str, tuple[str, int]] = {}  # tensor -> its name and type in the new graph
        self._cast: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        dtype_of: dict[str, int] = {}
        used: dict[str, set[int]] = {name: set() for name in self._weights}
        for index, node in enumerate(self.graph.node):
            wanted = self.types.get(index)
            for position, name in enumerate(node.input):
                if wanted is None or not self._is_float(name):
                    continue
                if name in self._weights:
                    used[name].add(wanted)
                else:
                    node.input[position] = self._as(name, wanted, node.name or node.output[0])
            for position, name in enumerate(node.output):
                if wanted is not None and self._is_float(name):
                    new = name
                    if wanted == self.low and name in self._outputs:
                        new = self._fresh(f"{name}/{TAGS[wanted]}")
                        node.output[position] = new
                    self._held_in[name] = (new, wanted)
                    dtype_of[new] = wanted
            self._nodes.append(node)
        for name in (value.name for value in self.graph.output):
            if self._is_float(name) and self._held_in.get(name, (name, 0))[0] != name:
                self._as(name, TensorProto.FLOAT, name)
        self._write_weights(used)
        shapes = {new: name for name, (new, _) in self._held_in.items()}
        shapes |= {new: name for (name, _), new in self._cast.items()}
        dtype_of |= {new: dtype for (_, dtype), new in self._cast.items()}
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        self._write_value_info(shapes, dtype_of)

    def _is_float(self, name: str) -> bool:
        return name in self.info and self.info[name].dtype == TensorProto.FLOAT

    def _fresh(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}.{count}"
        self._taken.add(unique)
        return unique

    def _as(self, name: str, dtype: int, reader: str) -> str:
        """Return the name of a tensor in a type, with the one Cast that makes it where it is held in the other."""
        held, held_as = self._held_in.get(name, (name, TensorProto.FLOAT))
        if held_as == dtype:
            return held
        if (name, dtype) not in self._cast:
            back_to_output = dtype == TensorProto.FLOAT and name in self._outputs
            new = name if back_to_output else self._fresh(f"{name}/{TAGS[dtype]}")
            label = self._fresh(f"{reader}/to_{TAGS[dtype]}")
            self._nodes.append(helper.make_node("Cast", [held], [new], label, to=dtype))
            self._cast[name, dtype] = new
            self.casts += 1
        return self._cast[name, dtype]

    def _write_weights(self, used: dict[str, set[int]]) -> None:
        """Convert each weight that low nodes read, once; keep an FP32 copy beside it if an FP32 node reads it too."""
        converted = subnormal = flushed = 0
        renamed: dict[str, str] = {}
        for name in sorted(n for n, types in used.items() if self.low in types):
            tensor = self._weights[name]
            values = numpy_helper.to_array(tensor)
            lowered = round_to(values, self.low)
            magnitude = np.abs(lowered.astype(np.float32))
            smallest = float(ml_dtypes.finfo(lowered.dtype).smallest_normal)
            converted += values.size
            flushed += int(np.count_nonzero((magnitude == 0) & (values != 0)))
            subnormal += int(np.count_nonzero((magnitude > 0) & (magnitude < smallest)))
            if TensorProto.FLOAT in used[name] or name in self._outputs:
                renamed[name] = self._fresh(f"{name}/{TAGS[self.low]}")
                self.graph.initializer.append(numpy_helper.from_array(lowered, renamed[name]))
            else:
                tensor.CopyFrom(numpy_helper.from_array(lowered, name))
        for index, node in enumerate(self.graph.node):
            if self.types.get(index) == self.low:
                for position, name in enumerate(node.input):
                    node.input[position] = renamed.get(name, name)
        self.weight_counts = (converted, subnormal, flushed)

    def _write_value_info(self, origin: dict[str, str], dtype_of: dict[str, int]) -> None:
        """Declare the type and shape of every tensor between inputs and outputs; `origin` names whose shape it has."""
        del self.graph.value_info[:]
        for node in self.graph.node:
            for name in node.output:
                tensor = self.info.get(origin.get(name, name))
                if name and name not in self._outputs and tensor is not None:
                    dtype = dtype_of.get(name, tensor.dtype)
                    self.graph.value_info.append(helper.make_tensor_value_info(name, dtype, tensor.shape))
