"""The kernels of an engine, as its runtime names them: a census, and whether they have the types of the graph.

Two things are read in it that no other file says. Which products are really multiplied in the precision that the graph has them in: a
builder may widen weights while the engine runs, a CPU may lack kernels for a type. And whether attention is one kernel.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

EIGHT_BIT_TYPES = ("int8", "float8_e4m3fn")  # by numpy's names
LOG, INSPECTOR, COMPILED = "builder's log", "engine inspector", "compiled model"  # who tells of them
SIXTEEN_BIT_TYPES = ("float16", "bfloat16")

_TEXT = re.compile(r"(?P<dtype>\w+|\?)\[(?P<shape>(?:-?\d+(?:,-?\d+)*)?)\]")


class Role(str, Enum):
    """What a kernel is for."""

    PRODUCT = "product"
    ATTENTION = "attention"
    WIDENING = "widening"
    OTHER = "other"


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes.

    Attributes:
        dtype: by numpy's name, "" for one that is not known.
        shape: as the engine stores it, which need not be the graph's.
        constant: it is part of the engine, as weights are.
    """

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False

    @classmethod
    def of(cls, text: str) -> Operand:
        """Return the operand that a text is of; whether it is constant is not in it.

        Raises:
            ValueError: it is of none.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no tensor")
        return cls(match["dtype"].replace("?", ""), tuple(map(int, filter(None, match["shape"].split(",")))))

    def __str__(self) -> str:
        return f"{self.dtype or '?'}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Kernel:
    """A kernel of an engine.

    Attributes:
        name: the builder's.
        kind: the builder's: gemm, runtime_fusion, kgen ...
        reads: inputs, then constants.
        writes: outputs.
        nodes: of the ONNX graph, that it has a part in; none of a kernel that only moves what the engine is given.
        role: what it is for.
        factors: the type that it multiplies, where the name of its tactic tells; "" elsewhere.
    """

    name: str
    kind: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    nodes: tuple[str, ...]
    role: Role = Role.OTHER
    factors: str = ""

    @property
    def multiplies(self) -> bool:
        """Whether it computes a product, attention's included."""
        return self.role in (Role.PRODUCT, Role.ATTENTION)

    @property
    def low_operands(self) -> int:
        """How many of its operands are of 8 bits."""
        return sum(operand.dtype in EIGHT_BIT_TYPES for operand in self.reads)

    @property
    def tells_both(self) -> bool:
        """Whether it lists both factors of a product: a library may leave its weights out."""
        return sum(math.prod(operand.shape) > 1 for operand in self.reads) >= 2

    @property
    def computes_in(self) -> str:
        """The type of its operands: one of 8 bits only where both are; "" where that is not told."""
        if self.factors:
            return self.factors
        if self.low_operands and not self.tells_both:
            return ""
        if self.low_operands >= 2:
            return self.reads[0].dtype
        wide = [operand for operand in self.reads if operand.dtype not in EIGHT_BIT_TYPES] or self.reads
        # the factors are the largest; a bias or a norm that the kernel takes along may be of another type
        return max(wide, key=lambda operand: math.prod(operand.shape)).dtype if wide else ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        reads, writes = ([str(operand) for operand in group] for group in (self.reads, self.writes))
        return {
            "role": self.role.value, "kind": self.kind, "name": self.name, "reads": reads, "writes": writes,
            "nodes": list(self.nodes), **({"factors": self.factors} if self.factors else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Census:
    """How many kernels an engine has, and of what kind.

    Attributes:
        kernels: in all.
        products: those that multiply, attention's left out, by the type that they compute in; "" for one that is not known.
        attention_kernels: kernels that compute attention whole.
        attention: how many of the graph's attentions are one kernel each.
        attentions: that the graph is known to have.
        widened: ONNX nodes whose weights are widened from 8 bits by a kernel of its own, at every run.
    """

    kernels: int
    products: Mapping[str, int]
    attention_kernels: int
    attention: int
    attentions: int
    widened: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "products": dict(self.products), "widened": list(self.widened)}


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

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.kept) + len(self.widened) + len(self.unknown)

    @property
    def all_kept(self) -> bool:
        """Whether the engine is known to multiply all of them in 8 bits."""
        return not self.widened and not self.unknown


def with_products(kernels: Sequence[Kernel], products: Collection[str]) -> tuple[Kernel, ...]:
    """Return kernels of which each product of a graph that none multiplies is one of the first that names it."""
    found = list(kernels)
    multiplied = {node for kernel in found if kernel.multiplies for node in kernel.nodes}
    for node in products:
        place = next((i for i, kernel in enumerate(found) if node in kernel.nodes), None)
        if place is not None and node not in multiplied:
            found[place] = replace(found[place], role=Role.PRODUCT)
    return tuple(found)


def take_census(kernels: Sequence[Kernel], attention: Collection[str]) -> Census | None:
    """Count the kernels; None where there are none.

    Args:
        kernels: of the engine.
        attention: the graph's Softmax nodes that are attention's (`graph_file.attention_nodes`).
    """
    if not kernels:
        return None
    products = [kernel for kernel in kernels if kernel.role is Role.PRODUCT]
    types = Counter(kernel.computes_in for kernel in products)
    fused = {node for kernel in kernels if kernel.role is Role.ATTENTION for node in kernel.nodes}
    widened = [kernel.nodes[-1] for kernel in kernels if kernel.role is Role.WIDENING and kernel.nodes]
    return Census(
        kernels=len(kernels),
        products=dict(sorted(types.items())),
        attention_kernels=sum(kernel.role is Role.ATTENTION for kernel in kernels),
        attention=len(fused.intersection(attention)),
        attentions=len(attention),
        widened=tuple(dict.fromkeys(widened)),
    )


def products(kernels: Iterable[Kernel], asked: Mapping[str, str]) -> Products | None:
    """Hold the products of a graph to the kernels of its engine; None for a graph that has none in 8 bits.

    Args:
        kernels: of the engine.
        asked: what each product computes in, by ONNX node (`graph_file.product_types`).
    """
    planned = [node for node, kind in asked.items() if kind in EIGHT_BIT_TYPES]
    if not planned:
        return None
    multiplied_by = _multiplied_by(kernels)
    sorted_nodes: dict[str, list[str]] = {"kept": [], "widened": [], "unknown": []}
    for node in planned:
        multiply = multiplied_by.get(node, ())
        low = any(kernel.computes_in in EIGHT_BIT_TYPES for kernel in multiply)
        # attention in one kernel may quantize inside: what it reads does not tell
        told = any(k.role is Role.PRODUCT and (k.factors or k.tells_both) for k in multiply)
        sorted_nodes["kept" if low else "widened" if told else "unknown"].append(node)
    return Products(**{name: tuple(nodes) for name, nodes in sorted_nodes.items()})


def raised(kernels: Iterable[Kernel], asked: Mapping[str, str]) -> tuple[str, ...]:
    """Return the products that a graph has in 16 bits and the engine multiplies in 32.

    Args:
        kernels: of the engine.
        asked: as of `products`.
    """
    multiplied_by = _multiplied_by(kernels)
    nodes = []
    for node, kind in asked.items():
        types = [{operand.dtype for operand in kernel.reads} for kernel in multiplied_by.get(node, ())]
        # one operand of 16 bits is enough: a kernel may convert the other, an image for example, by itself
        if kind in SIXTEEN_BIT_TYPES and types and all(found == {"float32"} for found in types):
            nodes.append(node)
    return tuple(nodes)


def kernel_details(
    kernels: Sequence[Kernel], asked: Mapping[str, str], attention: Collection[str], told_by: str = LOG
) -> dict[str, Any]:
    """Return what the kernels of an engine say of it, as JSON values for `EngineInfo.details`; None where they are not known.

    Args:
        kernels: of the engine.
        asked: as of `products`.
        attention: as of `take_census`.
        told_by: who told them, `LOG` or `INSPECTOR`.
    """
    low, census = products(kernels, asked), take_census(kernels, attention)
    return {
        "eight_bits": low.to_dict() if low else None,
        "raised": list(raised(kernels, asked)) if kernels else None,
        "kernels": census.to_dict() if census else None,
        "kernels_told_by": told_by,
    }


def _multiplied_by(kernels: Iterable[Kernel]) -> dict[str, list[Kernel]]:
    """The kernels that compute each product; what only adds a bias, or widens a weight, names it too."""
    by_node: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for node in kernel.nodes if kernel.multiplies else ():
            by_node.setdefault(node, []).append(kernel)
    return by_node


def widens(kernel: Kernel) -> bool:
    """Whether all that a kernel does is to make more than 8 bits of a weight in 8."""
    low = any(operand.constant and operand.dtype in EIGHT_BIT_TYPES for operand in kernel.reads)
    inputs = any(not operand.constant for operand in kernel.reads)
    return low and not inputs and not any(operand.dtype in EIGHT_BIT_TYPES for operand in kernel.writes)
