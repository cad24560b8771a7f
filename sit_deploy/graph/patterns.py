"""What a graph has in several operators that is decided as one: GELU by Erf, RMS norms, angles of rotary positions, selections of tokens."""

from __future__ import annotations

import re

import onnx


class _Links:
    """Who makes and who reads the tensors of a graph, by index of nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = graph.node
        self.constants = {tensor.name for tensor in graph.initializer}
        self.producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.node):
            for name in node.input:
                self.readers.setdefault(name, []).append(i)

    def made_by(self, tensor: str, *op_types: str) -> int | None:
        """Return the node that makes a tensor, if it is one of these operators."""
        index = self.producer.get(tensor)
        return index if index is not None and self.nodes[index].op_type in op_types else None

    def only_next(self, index: int, *op_types: str) -> int | None:
        """Return the one node that reads what a node makes, if it is one of these operators."""
        readers = self.readers.get(self.nodes[index].output[0], [])
        return readers[0] if len(readers) == 1 and self.nodes[readers[0]].op_type in op_types else None

    def scales_by_constant(self, index: int) -> bool:
        """Say whether one operand of a node is a constant."""
        return any(name in self.constants for name in self.nodes[index].input)


def erf_gelus(graph: onnx.GraphProto) -> dict[int, tuple[int, ...]]:
    """Find GELU written out, x * 0.5 * (1 + erf(x / sqrt 2)); map each node's index to those of its group.

    The scaling before Erf, Erf, the Add after it and the one or two Muls after that are the group, in whichever order
    the exporter multiplies.
    """
    links = _Links(graph)
    groups: dict[int, tuple[int, ...]] = {}
    for erf, node in enumerate(graph.node):
        scaled = links.made_by(node.input[0], "Div", "Mul") if node.op_type == "Erf" else None
        plus_one = links.only_next(erf, "Add") if scaled is not None else None
        first = links.only_next(plus_one, "Mul") if plus_one is not None else None
        if first is None:
            continue
        second = links.only_next(first, "Mul")
        group = tuple(i for i in (scaled, erf, plus_one, first, second) if i is not None)
        groups.update(dict.fromkeys(group, group))
    return groups


def angles(graph: onnx.GraphProto) -> set[int]:
    """Find what makes the angles of rotary positions: the nodes from which only sines and cosines are computed; return their indices."""
    links = _Links(graph)
    outputs = {value.name for value in graph.output}
    found: set[int] = set()
    for i in range(len(graph.node) - 1, -1, -1):
        node = graph.node[i]
        readers = [reader for name in node.output for reader in links.readers.get(name, ())]
        last = node.op_type in ("Sin", "Cos")
        if last or (readers and found.issuperset(readers) and outputs.isdisjoint(node.output)):
            found.add(i)
    return found


def selections(graph: onnx.GraphProto) -> set[int]:
    """Find what decides which tokens are merged: the nodes of every module that has a TopK, by their names; return their indices."""
    scopes = {node.name.rpartition("/")[0] for node in graph.node if node.op_type == "TopK"} - {""}
    if not scopes:
        return {i for i, node in enumerate(graph.node) if node.op_type == "TopK"}
    # a product that stands for its module bears the module's name, those after it with a number
    inside = re.compile("|".join(rf"{re.escape(scope)}(/.*|_\d+)?" for scope in sorted(scopes)))
    return {i for i, node in enumerate(graph.node) if inside.fullmatch(node.name)}


def written_norms(graph: onnx.GraphProto) -> set[int]:
    """Find norms by root mean square, x / sqrt(mean(x^2) + eps) * weight; return the indices of their nodes.

    The squares may be of x less its mean, the mean may be rescaled by constants, and the root's reciprocal multiplied: as
    `graph.deploy_norm` writes them, and as PyTorch exports those that it leaves alone.
    """
    links = _Links(graph)
    found: set[int] = set()
    for root, node in enumerate(graph.node):
        divided = _divided(links, root) if node.op_type == "Sqrt" else None
        squares = _squares(links, node.input[0]) if divided else None
        if squares is None:
            continue
        last = links.only_next(divided[-1], "Mul")
        scaling = [last] if last is not None and links.scales_by_constant(last) else []
        found.update((root, *divided, *squares, *scaling))
    return found


def _divided(links: _Links, root: int) -> tuple[int, ...] | None:
    """Return the nodes that divide something by a root; None where it is used otherwise."""
    division = links.only_next(root, "Div", "Reciprocal")
    if division is None:
        return None
    if links.nodes[division].op_type == "Div":
        return (division,) if links.nodes[division].input[1] == links.nodes[root].output[0] else None
    product = links.only_next(division, "Mul")
    return None if product is None else (division, product)


def _squares(links: _Links, tensor: str) -> tuple[int, ...] | None:
    """Return the nodes that make a tensor of the mean of squares and a constant; None where it is made otherwise."""
    nodes: list[int] = []
    step = links.made_by(tensor, "Add")
    while step is not None and links.nodes[step].op_type != "ReduceMean":
        if not links.scales_by_constant(step):
            return None
        nodes.append(step)
        source = next((name for name in links.nodes[step].input if name not in links.constants), "")
        step = links.made_by(source, "ReduceMean", "Mul", "Div", "Reshape")
    if step is None:
        return None
    square = links.made_by(links.nodes[step].input[0], "Pow", "Mul")
    if square is None:
        return None
    base, other = links.nodes[square].input
    if links.nodes[square].op_type == "Mul" and base != other:
        return None
    nodes += [step, square]
    centred = links.made_by(base, "Sub")
    mean = links.made_by(links.nodes[centred].input[1], "ReduceMean") if centred is not None else None
    return (*nodes, *([centred, mean] if mean is not None else []))
