"""INT8 products of a Q/DQ graph as ONNX Runtime's INT8 operators, with the same numbers.

    x → Q → DQ → MatMul or Gemm (· dequantized weight) → + bias   →  Q (uint8) → com.microsoft MatMulIntegerToFloat
    x → + constant → Q                                            →  Q with another zero point
    dequantized weight of a Conv                                  →  the float weight

Activations become uint8, their zero points 128 more: on x86, uint8 by int8 is the product that has fast kernels; int8 by
int8 is 30 times as slow, and cannot be loaded where `session.x64quantprecision` turns weights into uint8.

The second rule needs a constant that is a whole number of steps of the quantization, because rounding then commutes
with the addition; other constants are still added. A convolution has no fast INT8 operator with a float result, and with
its weight made float again at each run it would not even have the fast float one.

Patterns are recognised by operators and constants, never by names. Whatever is not certain (one scale for a whole weight,
scales that are computed, weights with a zero point) stays as it was: ONNX Runtime has its own rules for much of that.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from engines.onnxruntime.node_index import CONTRIB, NodeIndex, attribute, is_operator, other

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Where each operator has its weight. Attention and its like count as one product, their projection.
_INT8_OPERATORS = {
    "MatMulIntegerToFloat": 1,
    "QAttention": 1,
    "MatMulInteger": 1,
    "DynamicQuantizeMatMul": 1,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "QLinearConv": 3,
    "QGemm": 3,
}
_FLOAT_OPERATORS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "Attention")


@dataclass(frozen=True)
class _Codes:
    """A quantized activation.

    quantize makes the codes of `source`, with the zero point `encode`; `dequantize` are all its readers, and `decode` is
    the zero point of the one in question. Both zero points as uint8 has them.
    """

    quantize: NodeProto
    dequantize: tuple[NodeProto, ...]
    source: str
    encode: int
    decode: int
    scale: str


@dataclass(frozen=True)
class Product:
    """A product of an INT8 activation and an INT8 weight with a scale for each output channel.

    Attributes:
        weight: name of the codes, int8, (K, N), or (N, K) if `transposed`.
        weight_scale: name of the scales, float32 (N,).
    """

    node: NodeProto
    weight: str
    weight_scale: str
    shape: tuple[int, int]
    transposed: bool
    bias: str | None
    _codes: _Codes

    def operands(self, graph: NodeIndex) -> dict[str, str]:
        """Make the activation uint8; return the names of the operator's inputs."""
        codes = self._codes
        graph.retype(codes.quantize.output[0])
        codes.quantize.input[0] = codes.source
        codes.quantize.input[2] = _zero_point(graph, codes.encode)
        for node in codes.dequantize:
            # what else reads the codes sees the same values
            node.input[2] = _zero_point(graph, _zero(graph, node))
        return {
            "codes": codes.quantize.output[0],
            "weight": self._weight(graph),
            "scale": codes.scale,
            "weight_scale": self.weight_scale,
            "zero_point": _zero_point(graph, codes.decode),
            # said and not left out: it is turned into uint8 with the weight where `cpu.int8_saturates`
            "weight_zero_point": graph.add_constant(f"{self.weight}/zero", np.zeros((), np.int8)),
        }

    def _weight(self, graph: NodeIndex) -> str:
        if not self.transposed:
            return self.weight
        values = graph.array(self.weight, TensorProto.INT8)
        return graph.add_constant(f"{self.weight}/transposed", values.T)


def fuse_int8_products(model: ModelProto) -> int:
    """Replace products of INT8 activations and INT8 weights; returns how many there were."""
    graph = NodeIndex(model)
    fused = 0
    for node in list(graph.nodes("MatMul", "Gemm")):
        product = match_product(graph, node)
        if product is not None:
            _fuse(graph, product)
            fused += 1
    graph.save()
    return fused


def fold_conv_weights(model: ModelProto) -> int:
    """Make the INT8 weights of convolutions with a float result float; returns how many there were."""
    graph = NodeIndex(model)
    folded = 0
    for node in list(graph.nodes("DequantizeLinear")):
        codes = graph.array(node.input[0], TensorProto.INT8)
        weight = _weight(graph, node, codes.shape) if codes is not None else None
        readers = graph.readers(node.output[0])
        if weight is None or graph.is_output(node.output[0]):
            continue
        if not readers or not all(_is_float_conv(graph, reader) for reader in readers):
            continue
        axis, scale = weight
        shape = [1] * codes.ndim
        shape[axis] = -1
        graph.replace_by_constant(node, codes.astype(np.float32) * scale.reshape(shape))
        folded += 1
    graph.save()
    return folded


def int8_summary(model: ModelProto) -> dict[str, int | dict[str, int]]:
    """Count the products with a constant weight that run in INT8: "products", "of" so many, and by "operators"."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if is_operator(node, "DequantizeLinear") and node.input[0] in constants:
            constants.update(node.output)

    def has_weight(node: NodeProto, position: int) -> bool:
        return len(node.input) > position and node.input[position] in constants

    nodes = model.graph.node
    int8 = Counter(n.op_type for n in nodes if has_weight(n, _INT8_OPERATORS.get(n.op_type, len(n.input))))
    rest = sum(n.op_type in _FLOAT_OPERATORS and has_weight(n, 1) for n in nodes)
    return {"products": int8.total(), "of": int8.total() + rest, "operators": dict(sorted(int8.items()))}


def match_product(graph: NodeIndex, node: NodeProto) -> Product | None:
    """The INT8 product that a MatMul or Gemm is, without the bias that an Add behind it may hold."""
    gemm = node.op_type == "Gemm"
    if gemm and (attribute(node, "transA", 0), attribute(node, "alpha", 1.0)) != (0, 1.0):
        return None
    transposed = gemm and bool(attribute(node, "transB", 0))
    dequantize = graph.producer(node.input[1], "DequantizeLinear")
    codes = graph.constant(dequantize.input[0], TensorProto.INT8) if dequantize is not None else None
    weight = _weight(graph, dequantize, tuple(codes.dims)) if codes is not None else None
    if weight is None or len(codes.dims) != 2 or weight[0] != (0 if transposed else 1):
        return None
    activation = _match_codes(graph, node.input[0])
    if activation is None:
        return None
    rows, columns = reversed(codes.dims) if transposed else codes.dims
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (graph.float32_shape(bias) != (columns,) or attribute(node, "beta", 1.0) != 1.0):
        return None
    return Product(
        node=node,
        weight=codes.name,
        weight_scale=dequantize.input[1],
        shape=(rows, columns),
        transposed=transposed,
        bias=bias or None,
        _codes=activation,
    )


def _fuse(graph: NodeIndex, product: Product) -> None:
    old, bias = [product.node], product.bias
    add = graph.consumer(product.node.output[0], "Add")
    if add is not None and bias is None and not graph.is_output(product.node.output[0]):
        added = other(add, product.node.output[0])
        if graph.float32_shape(added) == (product.shape[1],):
            old, bias = [product.node, add], added
    names = product.operands(graph)
    order = ("codes", "weight", "scale", "weight_scale", "zero_point", "weight_zero_point")
    new = helper.make_node(
        "MatMulIntegerToFloat",
        [*(names[name] for name in order), *([bias] if bias else [])],
        [old[-1].output[0]],
        name=product.node.name,
        domain=CONTRIB,
    )
    graph.replace(old, new)


def _match_codes(graph: NodeIndex, name: str) -> _Codes | None:
    """The codes of which a tensor is the values, with whatever constant is added in front."""
    dequantize = graph.producer(name, "DequantizeLinear")
    quantize = graph.producer(dequantize.input[0], "QuantizeLinear") if dequantize is not None else None
    if quantize is None or _zero(graph, quantize) is None:
        return None
    codes = quantize.output[0]
    is_int8 = graph.constant(quantize.input[2], TensorProto.INT8) is not None
    readers = graph.readers(codes) if is_int8 else [dequantize]
    if any(not is_operator(node, "DequantizeLinear") or _zero(graph, node) is None for node in readers):
        return None
    if is_int8 and graph.is_output(codes):
        return None
    source, shift = _match_shift(graph, quantize)
    return _Codes(
        quantize=quantize,
        dequantize=tuple(readers) if is_int8 else (),
        source=source,
        encode=_zero(graph, quantize) + shift,
        decode=_zero(graph, dequantize),
        scale=dequantize.input[1],
    )


def _match_shift(graph: NodeIndex, quantize: NodeProto) -> tuple[str, int]:
    """What is quantized and the steps added to it: all of a constant in front that is so many steps, or nothing."""
    name = quantize.input[0]
    add = graph.producer(name, "Add")
    constants = [operand for operand in add.input if graph.float32_shape(operand) == ()] if add else []
    if len(constants) != 1:
        return name, 0
    step = graph.array(quantize.input[1], TensorProto.FLOAT).item()
    amount = graph.array(constants[0], TensorProto.FLOAT).item()
    if not (step > 0 and math.isfinite(amount)):
        return name, 0
    steps = round(amount / step)
    if np.float32(steps * step) != np.float32(amount) or not 0 <= _zero(graph, quantize) + steps <= 255:
        return name, 0
    return other(add, constants[0]), steps


def _zero(graph: NodeIndex, node: NodeProto) -> int | None:
    """The zero point of a Q or DQ with one float32 scale, as uint8 codes have it; None for any other."""
    if len(node.input) < 3:
        return None
    scale = graph.float32_shape(node.input[1])
    zero = graph.array(node.input[2], TensorProto.INT8, TensorProto.UINT8)
    if scale != () or zero is None or zero.shape != ():
        return None
    return int(zero.item()) + (128 if zero.dtype == np.int8 else 0)


def _zero_point(graph: NodeIndex, value: int) -> str:
    return graph.add_constant(f"int8/zero_point/{value}", np.uint8(value))


def _is_float_conv(graph: NodeIndex, node: NodeProto) -> bool:
    """Whether a node is a Conv that ONNX Runtime makes no QLinearConv of: one whose result is not quantized at once."""
    after = ("QuantizeLinear", "Relu", "Clip")
    return is_operator(node, "Conv") and not any(
        is_operator(reader, operator) for reader in graph.readers(node.output[0]) for operator in after
    )


def _weight(graph: NodeIndex, dequantize: NodeProto, shape: tuple[int, ...]) -> tuple[int, np.ndarray] | None:
    """The axis of output channels of a dequantized int8 constant and their float32 scales; None for another kind."""
    scale = graph.array(dequantize.input[1], TensorProto.FLOAT)
    axis = attribute(dequantize, "axis", 1)
    if scale is None or not -len(shape) <= axis < len(shape) or scale.shape != (shape[axis],):
        return None
    if len(dequantize.input) > 2 and dequantize.input[2]:
        zero = graph.array(dequantize.input[2], TensorProto.INT8)
        if zero is None or zero.any():
            return None
    return axis % len(shape), scale
