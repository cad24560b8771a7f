from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.read_qdq import read_layers


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 21) -> onnx.ModelProto:
    """A graph of x (1, 4) → y; constants by name, as arrays or as tensors."""
    tensors = [
        c if isinstance(c, onnx.TensorProto) else numpy_helper.from_array(np.asarray(c), name)
        for name, c in constants.items()
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return model


def pair(name: str, out: str, *parameters: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{out}_codes"], **attributes),
        helper.make_node("DequantizeLinear", [f"{out}_codes", *parameters], [out]),
    ]


def weights(name: str = "w", dtype: Any = np.int8) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """A weight (4, 4) of codes with a scale for each output channel."""
    operands = [f"{name}_codes", f"{name}_scale", f"{name}_zero"]
    node = helper.make_node("DequantizeLinear", operands, [name], axis=1)
    zeros, scale = np.zeros(4, dtype), np.full(4, 0.1, np.float32)
    return [node], dict(zip(operands, (np.ones((4, 4), dtype), scale, zeros), strict=True))


def product(left: str = "xq", right: str = "w") -> onnx.NodeProto:
    return helper.make_node("MatMul", [left, right], ["y"], "product")


def read(nodes: list[onnx.NodeProto], constants: dict[str, Any], opset: int = 21) -> dict[str, Any]:
    (row,) = read_layers(graph_of(nodes, constants, opset))
    return row


SCALE = {"s": np.float32(0.25), "z": np.int8(0)}


def test_a_product_in_int8() -> None:
    more, constants = weights()
    row = read([*pair("x", "xq", "s", "z"), *more, product()], SCALE | constants)
    assert row == {"layer": "product", "precision": "int8", "scale": 0.25, "shift": 0}


def test_fp8() -> None:
    more, constants = weights()
    grid = TensorProto.FLOAT8E4M3FN
    constants |= {
        "w_codes": helper.make_tensor("w_codes", grid, [4, 4], np.ones(16)),
        "w_zero": helper.make_tensor("w_zero", grid, [4], np.zeros(4)),
        "z": helper.make_tensor("z", grid, [], [0.0]),
        "s": np.float32(0.5),
    }
    row = read([*pair("x", "xq", "s", "z"), *more, product()], constants)
    assert (row["precision"], row["scale"]) == ("fp8", 0.5)


@pytest.mark.parametrize("which", ["activation", "weight", "neither"])
def test_both_operands_have_to_be(which: str) -> None:
    more, constants = weights()
    nodes = [
        *(pair("x", "xq", "s", "z") if which == "activation" else []),
        *(more if which == "weight" else []),
    ]
    names = ("xq" if which == "activation" else "x", "w" if which == "weight" else "plain")
    row = read([*nodes, product(*names)], SCALE | constants | {"plain": np.eye(4, dtype=np.float32)})
    assert row == {"layer": "product", "precision": "high", "scale": None, "shift": None}


def test_shift() -> None:
    """What is added before quantizing, over the scale; through the cast of an FP16 graph and a convolution's padding."""
    more, constants = weights()
    constants |= SCALE | {"minus": np.float32(-28.0)}
    add = helper.make_node("Add", ["x", "minus"], ["shifted"])
    cast = helper.make_node("Cast", ["shifted"], ["cast"], to=TensorProto.FLOAT)
    for nodes, name in (([add], "shifted"), ([add, cast], "cast")):
        row = read([*nodes, *pair(name, "xq", "s", "z"), *more, product()], constants)
        assert (row["scale"], row["shift"]) == (0.25, 112)


@pytest.mark.parametrize("amount", [np.float32(3.0), np.float32(-0.3), np.ones(4, np.float32) * -28])
def test_an_addition_of_the_models_own_is_no_shift(amount: Any) -> None:
    more, constants = weights()
    add = helper.make_node("Add", ["x", "amount"], ["shifted"])
    nodes = [add, *pair("shifted", "xq", "s", "z"), *more, product()]
    assert read(nodes, SCALE | constants | {"amount": amount})["shift"] == 0


def test_through_the_casts_of_an_fp16_graph() -> None:
    more, constants = weights()
    casts = [helper.make_node("Cast", [n], [f"{n}_cast"], to=TensorProto.FLOAT) for n in ("xq", "w")]
    row = read([*pair("x", "xq", "s", "z"), *more, *casts, product("xq_cast", "w_cast")], SCALE | constants)
    assert (row["precision"], row["scale"]) == ("int8", 0.25)


def test_sums_are_listed_only_in_8_bits() -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"], "sum")
    plain = helper.make_node("Add", ["x", "x"], ["y"], "plain")
    nodes = [*pair("x", "a", "s", "z"), *pair("x", "b", "s", "z"), add]
    assert read(nodes, SCALE)["layer"] == "sum"
    assert read_layers(graph_of([plain], {})) == []


# ------------------------------------------------------------------------------------------- graphs of other tools


def test_without_zero_points() -> None:
    """The zero point may be left out; activations are uint8 then, and ONNX Runtime's tools leave out those of weights."""
    node = helper.make_node("DequantizeLinear", ["w_codes", "w_scale"], ["w"], axis=1)
    _, constants = weights()
    row = read([*pair("x", "xq", "s"), node, product()], {"s": np.float32(0.25)} | constants)
    assert (row["precision"], row["scale"]) == ("int8", 0.25)


def test_the_type_may_be_an_attribute() -> None:
    node = helper.make_node("DequantizeLinear", ["w_codes", "w_scale"], ["w"], axis=1)
    _, constants = weights()
    for grid, precision in ((TensorProto.FLOAT8E4M3FN, "fp8"), (TensorProto.INT16, "high")):
        nodes = [*pair("x", "xq", "s", output_dtype=grid), node, product()]
        assert read(nodes, {"s": np.float32(0.25)} | constants)["precision"] == precision


def test_16_bits_are_not_8() -> None:
    more, constants = weights()
    constants |= {"s": np.float32(0.25), "z": np.int16(0)}
    assert read([*pair("x", "xq", "s", "z"), *more, product()], constants)["precision"] == "high"


def test_the_weight_may_come_first() -> None:
    more, constants = weights()
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 1]) for n in ("x", "y")]
    graph = graph_of([*pair("x", "xq", "s", "z"), *more, product("w", "xq")], SCALE | constants)
    graph.graph.input[0].CopyFrom(values[0])
    graph.graph.output[0].CopyFrom(values[1])
    assert read_layers(graph)[0]["scale"] == 0.25


def test_a_scale_that_is_no_single_constant() -> None:
    more, constants = weights()
    channels = {"s": np.full(4, 0.5, np.float32), "z": np.zeros(4, np.int8)}
    row = read([*pair("x", "xq", "s", "z", axis=1), *more, product()], channels | constants)
    assert (row["precision"], row["scale"], row["shift"]) == ("int8", None, 0)
    made = helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0)
    row = read([made, *pair("x", "xq", "s", "z"), *more, product()], {"z": np.int8(0)} | constants)
    assert (row["precision"], row["scale"], row["shift"]) == ("int8", None, 0)
