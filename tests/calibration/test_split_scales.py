"""One scale for a weight whose product is split; that TensorRT-RTX's real builder multiplies it in 8 bits then is in the tests of builds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.insert_qdq import insert_qdq
from calibration.read_qdq import read_layers
from calibration.split_scales import share_split_scales
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import to_precision
from tests.helpers.graphs import images_for, prepared, run


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantized(name: str, precision: str = "int8", opset: int = 20) -> onnx.ModelProto:
    model, names, scales = prepared(name, precision, opset, shifted=precision == "int8", groups=None)
    return insert_qdq(model, names, scales, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "opset"), [("sit", "int8", 17), ("vit", "int8", 20), ("sit", "fp8", 20)]
)
def test_the_same_codes_and_the_same_result(name: str, precision: str, opset: int) -> None:
    low = quantized(name, precision, opset)
    before = low.SerializeToString()
    shared = share_split_scales(low)
    assert low.SerializeToString() == before  # it is a copy
    assert read_layers(shared) == read_layers(low)
    assert lint(shared, max_opset=opset) == []
    nodes = {node.name: node for node in shared.graph.node}
    old, new = constants(low), constants(shared)
    split = [
        node for node in low.graph.node if node.op_type == "MatMul" and node.name.endswith(("/qkv", "/kv"))
    ]
    assert [n for n in nodes if n.endswith("/rescale")] == [f"{node.name}/rescale" for node in split] != []
    for node in split:
        weight = nodes[f"{node.name}/weight/dequantize"]
        codes, scale, zero = (new[tensor] for tensor in weight.input)
        assert scale.shape == zero.shape == () and np.log2(scale) == np.round(np.log2(scale))
        np.testing.assert_array_equal(codes, old[f"{node.name}/weight/codes"])
        ratio = new[nodes[f"{node.name}/rescale"].input[1]]
        np.testing.assert_array_equal(ratio * scale, old[f"{node.name}/weight/scale"])
        assert 1 <= ratio.max() < 2
        # FP16 holds the ratio as it holds the scale
        np.testing.assert_array_equal(ratio.astype(np.float16).astype(np.float32), ratio)
    for image in images_for(low, 2, seed=4):
        expected = run(low, image)["logits"]
        np.testing.assert_allclose(run(shared, image)["logits"], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_fp16_beside_it() -> None:
    half, _ = to_precision(share_split_scales(quantized("vit")), "fp16")
    assert lint(half) == []
    ratios = [value for name, value in constants(half).items() if "/ratio" in name]
    assert ratios and {value.dtype for value in ratios} == {np.dtype(np.float16)}


GRAPH = """<ir_version: 10, opset_import: ["": 20]>
g (float[1,2] x) => ({outputs})
<int8[2,2] c = {{1,2,3,4}}, float[2] s = {{0.5,0.75}}, int8[2] z = {{0,0}}, float one = {{1.0}}, int8 o = {{0}}, float[2] b = {{1,2}}>
{{ q = QuantizeLinear (x, one, o) d = DequantizeLinear (q, one, o) w = DequantizeLinear <axis = 1> (c, s, z) {nodes} }}"""
HALVES = "float[1,1] l, float[1,1] r"


def graph(nodes: str, outputs: str = HALVES) -> onnx.ModelProto:
    return onnx.parser.parse_model(GRAPH.format(nodes=nodes, outputs=outputs))


@pytest.mark.parametrize(
    "nodes",
    [
        "[fc] p = MatMul (d, w) [part] l, r = Split <axis = 1, num_outputs = 2> (p)",
        "[fc] p = MatMul (d, w) [bias] t = Add (p, b) [part] l, r = Split <axis = 1, num_outputs = 2> (t)",
    ],
)
def test_a_product_that_is_split(nodes: str) -> None:
    model = graph(nodes)
    shared = share_split_scales(model)
    x = np.float32([[3, -5]])
    before, after = run(model, x), run(shared, x)
    assert {name: value.tolist() for name, value in before.items()} == {
        name: value.tolist() for name, value in after.items()
    }
    assert [node.name for node in shared.graph.node if node.op_type == "Mul"] == ["fc/rescale"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("[fc] y = MatMul (d, w)", "float[1,2] y"),
        ("[fc] p = MatMul (d, w) y = Relu (p)", "float[1,2] y"),
        # its whole result is read as well
        ("[fc] p = MatMul (d, w) y = Relu (p) l, r = Split <axis = 1, num_outputs = 2> (p)", f"float[1,2] y, {HALVES}"),
        ("[fc] p = MatMul (d, w) l, r = Split <axis = 1, num_outputs = 2> (p)", f"float[1,2] p, {HALVES}"),
        # not in 8 bits, and with one scale already
        ("v = Relu (w) [fc] p = MatMul (d, v) l, r = Split <axis = 1, num_outputs = 2> (p)", HALVES),
        ("v = DequantizeLinear (c, one, o) [fc] p = MatMul (d, v) l, r = Split <axis = 1, num_outputs = 2> (p)", HALVES),
    ],
)  # fmt: skip
def test_others_are_left_alone(nodes: str, outputs: str) -> None:
    model = graph(nodes, outputs)
    assert share_split_scales(model) is model


def test_a_weight_that_two_products_read() -> None:
    halves = "<axis = 1, num_outputs = 2>"
    model = graph(
        f"[one] p = MatMul (d, w) l, r = Split {halves} (p) [two] y = MatMul (d, w)",
        f"float[1,2] y, {HALVES}",
    )
    assert share_split_scales(model) is model


def test_dead_channels(values: Sequence[float] = (2.0**-24, 1.0)) -> None:
    """The least scale that there is beside one of weights."""
    model = graph("[fc] p = MatMul (d, w) l, r = Split <axis = 1, num_outputs = 2> (p)")
    (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == "s"]
    scale.CopyFrom(numpy_helper.from_array(np.float32(values), "s"))
    x = np.float32([[1, 1]])
    after = run(share_split_scales(model), x)
    assert float(after["l"][0, 0]) == 4 * 2.0**-24 and float(after["r"][0, 0]) == 6
