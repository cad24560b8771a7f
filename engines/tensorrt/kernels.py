"""The kernels of a TensorRT-RTX engine, as its builder's log names them with no GPU: a census.

The verbose log of a build with detailed profiling names each kernel of the engine on a line: its kind, the types and shapes of what it
reads and writes, and the ONNX nodes that it covers. (One listing, however many GPUs the engine is built for.) Two things are read in it
that no other file says. Which products are really multiplied in 8 bits: the support matrices (1.0 to 1.5) list INT8 as weight-only, and
the builder widens the weights of some products while the engine runs, to multiply them in 16 bits. And whether attention is one kernel.
Where a line cannot be read so, nothing is said of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from engines.kernels import Kernel, Operand, Role, widens, with_products
from engines.tensorrt.layers import node_names, type_name

_KERNEL = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), (?P<operands>.*?)\bOutputs: \[(?P<results>.*)", re.DOTALL
)
_TENSOR = re.compile(r"\bDimensions: \[(?P<shape>[\d, -]*)\][^}]*?\bDatatype: (?P<dtype>\w+)")
_CONSTANTS = "Constants: ["
# the name of a kernel that computes both products of attention and the softmax between
_ATTENTION = re.compile(r"_gem[mv]_mha")
_PRODUCT = re.compile(r"_gem[mv]_")
# kinds whose kernels multiply; what the builder writes itself (kgen) multiplies where its name says so, or where it alone has a product
_MULTIPLY = ("gemm", "gemv", "correlation", "runtime_fusion")


def is_kernel(line: str) -> bool:
    """Whether a line of the log is of a kernel."""
    return line.startswith("Name: ") and ", LayerType: " in line


def read_kernels(lines: Iterable[str], products: Collection[str] = ()) -> tuple[Kernel, ...]:
    """Read the kernels of an engine; none where one line cannot be read, since a count without it would be wrong.

    Args:
        lines: of the builder's log, those of `is_kernel`.
        products: the graph's products (MatMul, Gemm, Conv), by node: one that no kernel of a kind that multiplies has is computed by
            the first that names it.
    """
    kernels = [_read(line) for line in lines]
    return () if None in kernels else with_products(kernels, products)


def _read(line: str) -> Kernel | None:
    match = _KERNEL.match(line)
    if match is None:
        return None
    inputs, _, constants = match["operands"].partition(_CONSTANTS)
    reads = (*_operands(inputs), *_operands(constants, constant=True))
    if not reads and "{" in match["operands"]:
        return None
    nodes = tuple(dict.fromkeys(node_names(line)))
    kernel = Kernel(match["name"], match["kind"], reads, tuple(_operands(match["results"])), nodes)
    return replace(kernel, role=_role(kernel))


def _role(kernel: Kernel) -> Role:
    """What a kernel is for, as far as its name, its kind and its types tell."""
    own = kernel.kind == "kgen"
    if own and _ATTENTION.match(kernel.name):
        return Role.ATTENTION
    if kernel.kind in _MULTIPLY or (own and _PRODUCT.match(kernel.name)):
        return Role.PRODUCT
    return Role.WIDENING if widens(kernel) else Role.OTHER


def _operands(text: str, *, constant: bool = False) -> list[Operand]:
    return [
        Operand(type_name(match["dtype"]), tuple(map(int, filter(None, match["shape"].split(",")))), constant)
        for match in _TENSOR.finditer(text)
    ]
