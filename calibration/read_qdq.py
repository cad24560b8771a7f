"""Reading Q/DQ out of a graph: which layers have their operands quantized, and with which scales."""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import NodeProto, numpy_helper

_CODES = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}
_LAYERS = ("MatMul", "Conv", "Gemm", "Add")
_FOLLOWED = ("Cast", "Pad")


def read_layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return every product of a graph, and every sum that is quantized, in graph order.

    Each with `layer` (the node's name), `precision` ("int8", "fp8", or "high" where its operands are not all quantized to
    8 bits), `scale` of its activation (of the first, where it has two), and `shift`, the multiple of it that is subtracted
    first. Graphs of other tools are read too; where the activation has no single constant scale, `scale` is None.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rows = []
    for node in graph.node:
        if node.op_type not in _LAYERS:
            continue
        sources = [_dequantized(name, made_by) for name in node.input[:2]]
        codes = [_codes(source, made_by, constants) for source in sources]
        low = len(codes) == 2 and None not in codes
        if node.op_type == "Add" and not low:
            continue
        row: dict[str, Any] = {"layer": node.name, "precision": "high", "scale": None, "shift": None}
        if low:
            activation = next((s for s in sources if s.input[0] not in constants), sources[0])
            scale = _scalar(activation.input[1], constants)
            shift = 0 if scale is None else _shift(activation, made_by, constants, scale)
            row |= {"precision": codes[0], "scale": scale, "shift": shift}
        rows.append(row)
    return rows


def _codes(
    dequantize: NodeProto | None, made_by: dict[str, NodeProto], constants: dict[str, onnx.TensorProto]
) -> str | None:
    """Return what a DequantizeLinear reads, "int8" or "fp8"; None for anything else (4 or 16 bits, or no such node)."""
    if dequantize is None:
        return None
    source = made_by.get(dequantize.input[0])
    # the codes themselves, else the zero point that has their type; without one, QuantizeLinear writes uint8
    typed = [dequantize.input[0], *dequantize.input[2:3], *(source.input[2:3] if source is not None else ())]
    code_type = next((constants[name].data_type for name in typed if name in constants), None)
    if code_type is None:
        given = [a.i for a in source.attribute if a.name == "output_dtype"] if source is not None else []
        code_type = given[0] if given and given[0] else onnx.TensorProto.UINT8
    return _CODES.get(code_type)


def _scalar(name: str, constants: dict[str, onnx.TensorProto]) -> float | None:
    if name not in constants or math.prod(constants[name].dims) != 1:
        return None
    return float(numpy_helper.to_array(constants[name]).reshape(()))


def _dequantized(name: str, made_by: dict[str, NodeProto]) -> NodeProto | None:
    """Return the DequantizeLinear that a tensor comes from, directly or through a Cast."""
    node = made_by.get(name)
    while node is not None and node.op_type == "Cast":
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _shift(
    dequantize: NodeProto,
    made_by: dict[str, NodeProto],
    constants: dict[str, onnx.TensorProto],
    scale: float,
) -> int:
    quantize = made_by.get(dequantize.input[0])
    node = made_by.get(quantize.input[0]) if quantize is not None else None
    while node is not None and node.op_type in _FOLLOWED:
        node = made_by.get(node.input[0])
    if node is None or node.op_type != "Add":
        return 0
    amounts = [constants[name] for name in node.input if name in constants]
    if len(amounts) != 1 or list(amounts[0].dims) or scale <= 0:
        return 0
    shift = -float(numpy_helper.to_array(amounts[0])) / scale
    return round(shift) if shift > 0 and shift.is_integer() else 0  # any other is a sum of the model's own
