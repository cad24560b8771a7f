"""The kernels of a compiled OpenVINO model, with the types that they compute in, read back from its runtime information.

What was asked for is a wish: a CPU without kernels for a type computes in another one, and says so here alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engines.kernels import COMPILED, Kernel, Operand, Role, kernel_details
from engines.openvino.types import numpy_name

if TYPE_CHECKING:
    import onnx

    from engines.graph_file import GraphNodes

_NO_KERNEL = {"Const", "Input", "Output", "Reshape"}  # a Reshape only names the same values otherwise
_MULTIPLY = {"FullyConnected", "MatMul", "Convolution"}
_FUSED = {"Subgraph", "ScaledDotProductAttention"}
_WEIGHTS = "/transpose_b"  # what OpenVINO appends to a product for its weights, perhaps with a type behind
# what OpenVINO, and our cut of a product in three, append to the name of a node
_SUFFIX = re.compile(r"(/DequantizationMultiply|/WithoutBiases|/fq_\w+)$|/\d$")


def read_kernels(compiled: Any, graph: onnx.ModelProto, known: GraphNodes) -> tuple[Kernel, ...]:
    """Return the kernels of a compiled model in the order that they run; none where it does not tell.

    Args:
        compiled: of OpenVINO's `compile_model`.
        graph: that it was made of, whose nodes the kernels name.
        known: its products and attention.
    """
    nodes, products, attention = _names(graph), set(known.products), set(known.attention)
    summed = _summed(graph, products)
    try:
        operators = compiled.get_runtime_model().get_ordered_ops()
    except RuntimeError:
        return ()
    constant: set[str] = set()  # computed once, when the model is compiled
    kernels = []
    for operator in operators:
        name = operator.get_friendly_name()
        sources = [value.get_node().get_friendly_name() for value in operator.input_values()]
        kind = _text(operator, "layerType")
        if kind == "Const" or (sources and all(source in constant for source in sources)):
            constant.add(name)
            continue
        if kind in _NO_KERNEL:
            continue
        named = tuple(dict.fromkeys(_known(_text(operator, "originalLayersNames"), nodes)))
        if kind in _MULTIPLY and not products.intersection(named):
            named = (*(summed[name] for name in named if name in summed), *named)
            if not products.intersection(named):
                named = (*_by_weights(sources, nodes), *named)
        role = Role.OTHER
        if kind in _MULTIPLY or (kind in _FUSED and products.intersection(named)):
            fused = kind in _FUSED and attention.intersection(named)
            role = Role.ATTENTION if fused else Role.PRODUCT
        reads = tuple(
            _operand(value, value.get_node().get_friendly_name() in constant)
            for value in operator.input_values()
            if numpy_name(value.get_element_type())
        )
        writes = tuple(_operand(value) for value in operator.outputs())
        factors = numpy_name(_text(operator, "runtimePrecision")) if role is not Role.OTHER else ""
        tactic = _text(operator, "primitiveType")
        kernels.append(Kernel(tactic, kind, reads, writes, named, role, factors))
    return tuple(kernels)


def details(kernels: tuple[Kernel, ...], known: GraphNodes) -> dict[str, Any]:
    """Return what the kernels say of an engine, as JSON values for `EngineInfo.details`.

    Args:
        kernels: of `read_kernels`.
        known: of the graph, with the types that were asked for. FP16 is a form of the file here, and is computed in float32.
    """
    asked = known.types
    low = {node: kind for node, kind in asked.items() if kind != "float16"}
    told = kernel_details(kernels, low, known.attention, COMPILED)
    multiplied = {node for kernel in kernels if kernel.multiplies for node in kernel.nodes}
    untold = [node for node, kind in asked.items() if kind == "bfloat16" and node not in multiplied]
    return {**told, "lowered": _lowered(kernels, asked), "untold": untold}


def _lowered(kernels: tuple[Kernel, ...], asked: Mapping[str, str]) -> list[str]:
    """Return the products that a graph has in float32 and the engine multiplies in bfloat16."""
    in_low = {node for k in kernels if k.multiplies and k.computes_in == "bfloat16" for node in k.nodes}
    return [node for node, kind in asked.items() if kind == "float32" and node in in_low]


def _summed(graph: onnx.ModelProto, products: Collection[str]) -> dict[str, str]:
    """Return, by the sum that takes its result, each product: one that takes a bias along has the name of the sum alone."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    return {
        node.name: makers[name].name
        for node in graph.graph.node
        if node.op_type == "Add"
        for name in node.input
        if name in makers and makers[name].name in products
    }


def _names(graph: onnx.ModelProto) -> dict[str, str]:
    """Return the nodes of a graph by the names that OpenVINO has for them: the last one before an output is called as that."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    names = {node.name: node.name for node in graph.graph.node}
    for output in graph.graph.output:
        maker = makers.get(output.name)
        while maker is not None and maker.op_type == "Cast":
            maker = makers.get(maker.input[0])
        if maker is not None:
            names.setdefault(output.name, maker.name)
    return names


def _known(text: str, nodes: Mapping[str, str]) -> Iterator[str]:
    for name in filter(None, text.split(",")):
        bare = name
        while bare not in nodes and (shorter := _SUFFIX.sub("", bare)) != bare:
            bare = shorter
        if bare in nodes:
            yield nodes[bare]


def _by_weights(sources: Iterable[str], nodes: Mapping[str, str]) -> Iterator[str]:
    """Return the product whose weights a kernel reads: they are called after it, where the kernel itself has no name of the graph's.

    A product in 8 bits without a bias, or with one of zeros, that is summed up by the next node is such a kernel.
    """
    for source in sources:
        product, found, _ = source.partition(_WEIGHTS)
        if found:
            yield from _known(product, nodes)


def _operand(value: Any, constant: bool = False) -> Operand:
    shape = value.get_partial_shape()
    sizes = tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
    return Operand(numpy_name(value.get_element_type()), sizes, constant)


def _text(operator: Any, key: str) -> str:
    information = operator.get_rt_info()
    return str(information[key].value) if key in information else ""
