"""Which products of a graph in 8 bits TensorRT-RTX really multiplies in 8 bits, by what its builder logs, with no GPU.

Its support matrices (1.0 to 1.5) list INT8 as weight-only, and its builder widens the weights of some products while the engine runs,
to multiply them in 16 bits. The verbose log of a build with detailed profiling names each kernel of the engine on a line: its kind, the
types of its operands, and the ONNX nodes that it covers. Where no line can be read so, nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.tensorrt.layers import node_names, type_name

EIGHT_BIT_TYPES = ("int8", "float8_e4m3fn")  # by numpy's names

_KERNEL = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<operands>.*?)\bOutputs: \[", re.DOTALL
)
_TYPE = re.compile(r"\bDatatype: (\w+)")


@dataclass(frozen=True)
class Products:
    """The products that a graph has in 8 bits, by ONNX node, and what the engine makes of them.

    Attributes:
        kept: both operands are of 8 bits.
        widened: one at most is.
        unknown: the log does not tell.
    """

    kept: tuple[str, ...]
    widened: tuple[str, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {name: list(getattr(self, name)) for name in ("kept", "widened", "unknown")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Products:
        """What `to_dict` returned."""
        return cls(**{name: tuple(fields[name]) for name in ("kept", "widened", "unknown")})

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.kept) + len(self.widened) + len(self.unknown)

    @property
    def all_kept(self) -> bool:
        """Whether the engine is known to multiply all of them in 8 bits."""
        return not self.widened and not self.unknown


@dataclass(frozen=True)
class _Kernel:
    multiplies: bool
    low: int  # operands of 8 bits
    nodes: tuple[str, ...]


def is_kernel(line: str) -> bool:
    """Whether a line of the log is of a kernel."""
    return line.startswith("Name: ") and ", LayerType: " in line


def products(lines: Iterable[str], asked: Mapping[str, str]) -> Products | None:
    """Hold the products of a graph to the kernels of its engine; None for a graph that has none in 8 bits.

    Args:
        lines: of the builder's log, those of `is_kernel`.
        asked: what each product computes in, by ONNX node (`graph_file.product_types`).
    """
    planned = [node for node, kind in asked.items() if kind in EIGHT_BIT_TYPES]
    if not planned:
        return None
    by_node: dict[str, list[_Kernel]] = {}
    for line in lines:
        if kernel := _read(line):
            for node in kernel.nodes:
                by_node.setdefault(node, []).append(kernel)
    sorted_nodes: dict[str, list[str]] = {"kept": [], "widened": [], "unknown": []}
    for node in planned:
        # what only adds a bias, or unpacks a weight, names the product too
        low = [kernel.low for kernel in by_node.get(node, ()) if kernel.multiplies]
        sorted_nodes["unknown" if not low else "kept" if max(low) >= 2 else "widened"].append(node)
    return Products(**{name: tuple(nodes) for name, nodes in sorted_nodes.items()})


def _read(line: str) -> _Kernel | None:
    match = _KERNEL.match(line)
    if match is None:
        return None
    types = [type_name(text) for text in _TYPE.findall(match["operands"])]
    # code that the builder makes itself works element by element, but for what it calls a product
    multiplies = match["kind"] != "kgen" or "gemm" in match["name"] or "gemv" in match["name"]
    nodes = tuple(node_names(line))
    if not types or not nodes:
        return None
    return _Kernel(multiplies, sum(name in EIGHT_BIT_TYPES for name in types), nodes)
