"""INT8 rewrites give the Q/DQ graph's numbers, INT8 operators run, and anything uncertain is left alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.build_options import BuildOptions
from engines.onnxruntime.engine import OnnxRuntime
from engines.onnxruntime.fusion import fuse_attention, fuse_for_cpu
from engines.onnxruntime.int8 import fold_conv_weights, fuse_int8_products, int8_summary

ort = pytest.importorskip("onnxruntime")

K, N, TOKENS, HEADS = 12, 24, 5, 2
STEP = 1 / 32
_random = np.random.default_rng(0)
CODES = _random.integers(-127, 128, (K, N)).astype(np.int8)
SCALES = _random.uniform(1, 2, N).astype(np.float32) / 256
BIAS = _random.standard_normal(N).astype(np.float32)


def _constants(**changed: Any) -> dict[str, Any]:
    return {
        "step": np.float32(STEP),
        "zero": np.int8(0),
        "codes": CODES,
        "scales": SCALES,
        "zeros": np.zeros(N, np.int8),
        "bias": BIAS,
    } | changed


def _model(
    nodes: list,
    constants: dict[str, Any],
    x: list,
    outputs: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A graph from x to y; `outputs` are results in between that it gives as well."""
    read = {name for node in nodes for name in node.input}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, x)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    # types written down for every result, as graphs have them after shape inference
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(values[name] for name in outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def _quantized(x: str = "x", axis: int = 1) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [x, "step", "zero"], ["q"], name="quantize", axis=axis),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], name="dequantize", axis=axis),
    ]


def _linear(
    *,
    shift: float | None = None,
    axis: int = 1,
    activation_axis: int = 1,
    outputs: tuple[str, ...] = (),
    **changed: Any,
) -> onnx.ModelProto:
    """x + shift → Q → DQ → MatMul with a dequantized weight → + bias."""
    nodes = [
        *([] if shift is None else [helper.make_node("Add", ["x", "shift"], ["shifted"], name="shift")]),
        *_quantized("x" if shift is None else "shifted", activation_axis),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], name="weight", axis=axis),
        helper.make_node("MatMul", ["d", "w"], ["product"], name="linear"),
        helper.make_node("Add", ["product", "bias"], ["y"], name="bias"),
    ]
    constants = _constants(shift=np.float32(0 if shift is None else shift), **changed)
    return _model(nodes, constants, ["batch", TOKENS, K], outputs=outputs)


def _gemm(transposed: bool, *, with_bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    nodes = [
        *_quantized(),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=int(not transposed)),
        helper.make_node(
            "Gemm", ["d", "w", *(["bias"] if with_bias else [])], ["y"], transB=int(transposed), **attributes
        ),
    ]
    return _model(nodes, _constants(codes=CODES.T.copy() if transposed else CODES), ["batch", K])


def _attention(*, bias: bool, batch: int | str = "batch", outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    dim = N // 3
    nodes = [
        *_quantized(),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["product"]),
        *([helper.make_node("Add", ["product", "bias"], ["biased"])] if bias else []),
        helper.make_node(
            "Split", ["biased" if bias else "product"], ["q3", "k3", "v3"], axis=2, num_outputs=3
        ),
    ]
    for part, permutation in {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}.items():
        nodes.append(helper.make_node("Reshape", [f"{part}3", "heads"], [f"{part}4"]))
        nodes.append(helper.make_node("Transpose", [f"{part}4"], [f"{part}t"], perm=permutation))
    nodes += [
        helper.make_node("MatMul", ["qt", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "vt"], ["context"]),
        helper.make_node("Transpose", ["context"], ["joined"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["joined", "tokens"], ["y"]),
    ]
    shapes = {"heads": np.array([0, TOKENS, HEADS, dim // HEADS]), "tokens": np.array([0, TOKENS, dim])}
    return _model(nodes, _constants(**shapes), [batch, TOKENS, K], outputs=outputs)


def _conv(*, then: str | None = None) -> onnx.ModelProto:
    nodes = [
        *_quantized(),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w", "bias"], ["conv" if then else "y"], pads=[1, 1, 1, 1]),
        *([helper.make_node(then, ["conv"], ["y"])] if then else []),
    ]
    codes = _random.integers(-127, 128, (N, 3, 3, 3)).astype(np.int8)
    return _model(nodes, _constants(codes=codes), ["batch", 3, 8, 8])


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What the graph gives as it is, without ONNX Runtime's own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _input(*shape: int) -> np.ndarray:
    """Values of which some saturate on either side, none within rounding of the middle of two codes."""
    steps = np.random.default_rng(1).integers(-150, 151, shape)
    return ((steps + 0.25) * STEP).astype(np.float32)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _array(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def _assert_same(
    fused: onnx.ModelProto, plain: onnx.ModelProto, x: np.ndarray, tolerance: float = 2e-6
) -> None:
    expected = _run(plain, x)
    # the graph checker knows no operators of com.microsoft; ONNX Runtime checks the types of all
    np.testing.assert_allclose(_run(fused, x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("zero", [np.int8(0), np.int8(-7), np.uint8(131)])
def test_product_is_one_integer_operator_with_the_same_result(zero: np.integer) -> None:
    plain = _linear(zero=zero)
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 0, "gelu": 0, "int8_products": 1, "float_conv_weights": 0}
    assert _operators(fused) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    x = _input(3, TOKENS, K)
    _assert_same(fused, plain, x)
    assert np.abs(_run(plain, x) - x @ (CODES * SCALES) - BIAS).max() > 0.1  # codes do saturate


def test_activations_are_uint8_and_nothing_unused_is_kept() -> None:
    model = _linear()
    assert fuse_int8_products(model) == 1
    quantize, product = model.graph.node
    assert _array(model, quantize.input[2]) == np.uint8(128)
    assert _array(model, product.input[4]) == np.uint8(128)
    assert {t.name for t in model.graph.initializer} == {
        n for node in model.graph.node for n in node.input
    } - {"x", "q"}


@pytest.mark.parametrize("shift", [-112 * STEP, -64 * STEP, 3 * STEP])
def test_added_whole_steps_become_a_zero_point(shift: float) -> None:
    plain = _linear(shift=shift)
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    quantize, product = fused.graph.node
    assert quantize.input[0] == "x"
    assert _array(fused, quantize.input[2]) == 128 + round(shift / STEP)
    assert _array(fused, product.input[4]) == 128
    _assert_same(fused, plain, _input(3, TOKENS, K))


@pytest.mark.parametrize("shift", [-1.5 * STEP, -63.999 * STEP, 128 * STEP, -129 * STEP, np.nan])
def test_other_constants_are_still_added(shift: float) -> None:
    plain = _linear(shift=shift)
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    assert _operators(fused) == {"Add": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    if not np.isnan(shift):
        _assert_same(fused, plain, _input(3, TOKENS, K) + np.float32(0.1 * STEP))


def test_sum_that_is_read_elsewhere_is_still_computed() -> None:
    plain = _linear(shift=-64 * STEP, outputs=("shifted",))
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    assert _operators(fused) == {"Add": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    _assert_same(fused, plain, _input(2, TOKENS, K))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gemm_is_one_integer_operator_with_the_same_result(transposed: bool, with_bias: bool) -> None:
    plain = _gemm(transposed, with_bias=with_bias)
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    assert _operators(fused) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    _assert_same(fused, plain, _input(3, K))


def test_several_readers_share_one_quantization() -> None:
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["shifted"]),
        *_quantized("shifted"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["other"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["first"]),
        helper.make_node("MatMul", ["d", "w"], ["second"]),
        helper.make_node("ReduceSum", ["other"], ["sum"], keepdims=0),
        helper.make_node("Add", ["first", "second"], ["both"]),
        helper.make_node("Add", ["both", "sum"], ["y"]),
    ]
    plain = _model(nodes, _constants(shift=np.float32(-5 * STEP)), [2, TOKENS, K])
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 2
    assert _operators(fused)["QuantizeLinear"] == 1
    assert _operators(fused)["MatMul"] == 0
    _assert_same(fused, plain, _input(2, TOKENS, K))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [3, "batch"])
def test_attention_is_one_operator_with_the_same_result(bias: bool, batch: int | str) -> None:
    plain = _attention(bias=bias, batch=batch)
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 1, "gelu": 0, "int8_products": 0, "float_conv_weights": 0}
    assert _operators(fused) == {"QuantizeLinear": 1, "QAttention": 1}
    _assert_same(fused, plain, _input(3, TOKENS, K), tolerance=2e-5)


def test_attention_with_a_result_used_elsewhere_keeps_its_projection_in_int8() -> None:
    plain = _attention(bias=True, outputs=("weights",))
    fused = _copy(plain)
    assert fuse_attention(fused) == 0
    assert fused == plain
    assert fuse_int8_products(fused) == 1
    _assert_same(fused, plain, _input(2, TOKENS, K), tolerance=2e-5)


@pytest.mark.parametrize(("then", "folded"), [(None, 1), ("Sigmoid", 1), ("Relu", 0)])
def test_weight_of_a_float_convolution_is_float(then: str | None, folded: int) -> None:
    plain = _conv(then=then)
    fused = _copy(plain)
    assert fold_conv_weights(fused) == folded
    assert _operators(fused)["DequantizeLinear"] == 2 - folded
    assert (fused == plain) == (not folded)
    _assert_same(fused, plain, _input(2, 3, 8, 8), tolerance=0)


@pytest.mark.parametrize(
    "near_miss",
    [
        {"scales": SCALES[0], "zeros": np.int8(0)},  # one scale for the whole weight
        {
            "scales": np.resize(SCALES, K),
            "zeros": np.zeros(K, np.int8),
            "axis": 0,
        },  # one for each input channel
        {"zeros": np.ones(N, np.int8)},
        {"codes": CODES.view(np.uint8), "zeros": np.zeros(N, np.uint8)},
        {"step": np.full(K, STEP, np.float32), "zero": np.zeros(K, np.int8), "activation_axis": 2},
        {"outputs": ("q",)},  # the codes are read as int8
    ],
    ids=lambda changed: "-".join(changed),
)
def test_near_products_are_left_alone(near_miss: dict[str, Any]) -> None:
    plain = _linear(**near_miss)
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 0
    assert fused == plain


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("step", TensorProto.FLOAT, []),
        ("zero", TensorProto.INT8, []),
        ("scales", TensorProto.FLOAT, [N]),
        ("zeros", TensorProto.INT8, [N]),
        ("codes", TensorProto.INT8, [K, N]),
    ],
)
@pytest.mark.parametrize("default", [False, True])
def test_what_is_not_constant_is_left_alone(name: str, kind: int, shape: list, default: bool) -> None:
    """An input of the graph, with a constant as its default or without."""
    plain = _linear()
    if not default:
        (constant,) = (t for t in plain.graph.initializer if t.name == name)
        plain.graph.initializer.remove(constant)
    plain.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 0
    assert fused == plain


@pytest.mark.parametrize(
    "attributes", [{"alpha": 0.5}, {"beta": 0.5}], ids=lambda attributes: "-".join(attributes)
)
def test_scaled_gemm_is_left_alone(attributes: dict[str, float]) -> None:
    plain = _gemm(False, **attributes)
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 0
    assert fused == plain


def test_bias_of_another_shape_is_still_added() -> None:
    plain = _linear(bias=np.tile(BIAS, (TOKENS, 1)))
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    assert _operators(fused) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Add": 1}
    _assert_same(fused, plain, _input(2, TOKENS, K))


def test_product_that_is_an_output_keeps_its_name_and_value() -> None:
    plain = _linear(outputs=("product",))
    fused = _copy(plain)
    assert fuse_int8_products(fused) == 1
    assert _operators(fused) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Add": 1}
    _assert_same(fused, plain, _input(2, TOKENS, K))


@pytest.mark.parametrize(
    ("make", "operator"),
    [(_linear, "MatMulIntegerToFloat"), (lambda: _attention(bias=True), "QAttention")],
    ids=["product", "attention"],
)
def test_engine_s_int8_operators_run_and_take_exact_weights_where_asked(
    make: Any, operator: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "engine.onnx"
    plain = make()
    onnx.save(plain, source)
    info = OnnxRuntime().build(source, target, BuildOptions())
    assert info.details["int8"] == {"products": 1, "of": 1, "operators": {operator: 1}}
    x = _input(2, TOKENS, K)
    expected = _run(plain, x)
    for precision in ("0", "1"):
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile{precision}")
        options.optimized_model_filepath = str(tmp_path / f"loaded{precision}.onnx")
        options.add_session_config_entry("session.x64quantprecision", precision)
        session = ort.InferenceSession(target, options, ["CPUExecutionProvider"])
        (got,) = session.run(["y"], {"x": x})
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        events = json.loads(Path(session.end_profiling()).read_text())
        ran = {event["args"]["op_name"] for event in events if event.get("cat") == "Node"}
        assert ran == {"QuantizeLinear", operator}
        loaded = onnx.load(options.optimized_model_filepath)
        (node,) = (node for node in loaded.graph.node if node.op_type == operator)
        kind = np.uint8 if precision == "1" else np.int8
        assert _array(loaded, node.input[1]).dtype == kind
        position = {"MatMulIntegerToFloat": 5, "QAttention": 7}[operator]
        assert _array(loaded, node.input[position]) == (128 if precision == "1" else 0)


def test_summary_counts_products_with_weights_only() -> None:
    model = _attention(bias=False)
    assert int8_summary(model) == {"products": 0, "of": 1, "operators": {}}
    fuse_for_cpu(model)
    assert int8_summary(model) == {"products": 1, "of": 1, "operators": {"QAttention": 1}}
    assert int8_summary(_conv()) == {"products": 0, "of": 1, "operators": {}}
