from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.ranges import TensorRange, observe_ranges
from sit_deploy.errors import InputError
from sit_deploy.graph.inspect import tensor_info
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import PrecisionPlan, Reason, to_precision

Make = Callable[..., onnx.ModelProto]
LOW = {"fp16": "float16", "bf16": "bfloat16"}


def types(plan: PrecisionPlan) -> dict[str, str]:
    return {node.node: node.dtype for node in plan.nodes}


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def parsed_by_tensorrt(model: onnx.ModelProto) -> tuple[bool, str]:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    passed = parser.parse(model.SerializeToString())
    return passed, "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("batch", [2, "batch"])
def test_result_is_valid_and_strongly_typed(
    transformer: Make, opset: int, batch: int | str, precision: str
) -> None:
    model = transformer(opset, batch)
    before = model.SerializeToString(deterministic=True)
    typed, plan = to_precision(model, precision)

    onnx.checker.check_model(typed, full_check=True)
    assert lint(typed, dynamic_batch=batch == "batch") == []
    passed, errors = parsed_by_tensorrt(typed)
    assert passed, errors
    assert model.SerializeToString(deterministic=True) == before, "the argument was changed"
    again = to_precision(model, precision)[0]
    assert again.SerializeToString(deterministic=True) == typed.SerializeToString(deterministic=True)

    names = [node.name for node in typed.graph.node if node.op_type != "Cast"]
    assert names == [node.name for node in model.graph.node]
    assert plan.casts == len(typed.graph.node) - len(names)
    assert json.loads(json.dumps(plan.to_dict()))["precision"] == precision


def test_declared_types_are_the_inferred_ones(transformer: Make) -> None:
    typed, _ = to_precision(transformer(20), "fp16")
    declared = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
    produced = {name for node in typed.graph.node for name in node.output}
    assert declared.keys() == produced - {"logits"}
    del typed.graph.value_info[:]
    inferred = tensor_info(typed)
    assert {name: inferred[name].dtype for name in declared} == declared


def test_border_stays_float32(transformer: Make) -> None:
    typed, _ = to_precision(transformer(20), "fp16")
    border = [*typed.graph.input, *typed.graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in border] == [
        ("images", 1),
        ("logits", 1),
    ]


@pytest.mark.parametrize("opset", [17, 20])
def test_types_by_operator(transformer: Make, opset: int) -> None:
    model = transformer(opset)
    typed, plan = to_precision(model, "fp16")
    chosen = types(plan)
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert chosen[node.name] == "float32"
        elif node.op_type in ("MatMul", "Conv", "Gemm", "Gelu", "Add", "Mul", "Div", "Erf"):
            assert chosen[node.name] == "float16"
    stored = weight_types(typed)
    for name in ("norm.weight", "blocks.0/norm1.bias"):
        assert stored[name] == TensorProto.FLOAT
    for name in ("conv1.weight", "blocks.0/mlp/fc1.weight", "head.bias", "pos_embed"):
        assert stored[name] == TensorProto.FLOAT16
    assert stored["shape.patches"] == TensorProto.INT64


def test_norm_is_wrapped_in_readable_casts(transformer: Make) -> None:
    by_name = nodes(to_precision(transformer(20), "fp16")[0])
    before, norm, after = (
        by_name[name]
        for name in ("blocks.1/norm2/to_fp32", "blocks.1/norm2", "blocks.1/mlp/fc1/MatMul/to_fp16")
    )
    assert before.output[0] == norm.input[0]
    assert after.input[0] == norm.output[0]
    assert before.input[0] == by_name["blocks.1/Add"].output[0]


def test_no_cast_undoes_another(transformer: Make) -> None:
    for precision in ("fp16", "bf16"):
        typed, _ = to_precision(transformer(17), precision)
        cast_outputs = {n.output[0] for n in typed.graph.node if n.op_type == "Cast"}
        casts = [(n.input[0], n.attribute[0].i) for n in typed.graph.node if n.op_type == "Cast"]
        assert not cast_outputs.intersection(name for name, _ in casts)
        assert len(set(casts)) == len(casts), "a tensor is cast twice to the same type"


def test_weights_are_rounded_to_nearest(transformer: Make) -> None:
    model = transformer(20)
    exact = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for precision, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        typed, plan = to_precision(model, precision)
        lowered = [
            t for t in typed.graph.initializer if t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        ]
        assert plan.weights == sum(int(np.prod(t.dims)) for t in lowered) > 0
        for tensor in lowered:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), exact[tensor.name].astype(dtype))


def test_fp16_agrees_with_fp32_within_its_rounding(transformer: Make, images: np.ndarray) -> None:
    # The reference evaluator runs every node in the type that is written in the graph.
    model = transformer(20)
    typed, _ = to_precision(model, "fp16")
    exact = ReferenceEvaluator(model).run(None, {"images": images})[0]
    half = ReferenceEvaluator(typed).run(None, {"images": images})[0]
    assert half.dtype == np.float32
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert 0 < error < 5e-3


def test_fp32_is_the_graph_itself(transformer: Make) -> None:
    model = transformer(20)
    same, plan = to_precision(model, "fp32")
    assert same is model
    assert plan.counts == {"float32": len(model.graph.node)}


def test_bfloat16_convolution_needs_opset_22(transformer: Make) -> None:
    _, plan = to_precision(transformer(20), "bf16")
    assert [n.node for n in plan.held_back] == ["patch_embed/conv1", "patch_embed/conv2"]
    assert plan.held_back[0].reason is Reason.NO_SUCH_FORM
    assert plan.held_back[0].sentence == "Conv of opset 20 has no bfloat16 form"
    assert to_precision(transformer(22), "bf16")[1].held_back == ()


def test_range_above_the_limit_holds_its_nodes_back(transformer: Make, images: np.ndarray) -> None:
    model = transformer(20)
    weight = next(t for t in model.graph.initializer if t.name == "blocks.1/mlp/fc2.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 3e5, weight.name))
    ranges = observe_ranges(model, [images])
    product = nodes(model)["blocks.1/mlp/fc2/MatMul"].output[0]
    assert ranges[product].absmax > 65504 / 2
    typed, plan = to_precision(model, "fp16", ranges)
    held = {n.node: n.sentence for n in plan.held_back}
    assert held.keys() == {"blocks.1/mlp/fc2/MatMul", "blocks.1/mlp/fc2/Add", "blocks.1/Add_1"}
    assert held["blocks.1/mlp/fc2/Add"].startswith(
        f"'{product}' reaches {ranges[product].absmax:.6g}, above 32752 "
    )
    assert types(plan)["blocks.1/mlp/gelu"] == "float16"
    onnx.checker.check_model(typed, full_check=True)
    assert parsed_by_tensorrt(typed)[0]
    half = ReferenceEvaluator(typed).run(None, {"images": images})[0]
    assert np.isfinite(half).all()
    assert to_precision(model, "bf16", ranges)[1].held_back == to_precision(model, "bf16")[1].held_back


@pytest.mark.parametrize(("absmax", "stays"), [(32752.0, True), (32753.0, False)])
def test_the_limit_is_half_the_largest_value(transformer: Make, absmax: float, stays: bool) -> None:
    plan = to_precision(
        transformer(20), "fp16", {"head.absent": TensorRange(), "logits": TensorRange(-absmax, 1)}
    )[1]
    assert (types(plan)["head"] == "float16") == stays


def test_non_finite_range_holds_back(transformer: Make) -> None:
    seen = TensorRange(-np.inf, np.inf, True)
    (held,) = to_precision(transformer(20), "fp16", {"logits": seen})[1].held_back
    assert (held.node, held.sentence) == ("head", "'logits' was not finite on the calibration images")


def test_weight_that_overflows_holds_its_node_back(transformer: Make) -> None:
    model = transformer(20)
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] = 70000.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    typed, plan = to_precision(model, "fp16")
    (held,) = plan.held_back
    assert (held.node, held.sentence) == ("head", "weight 'head.bias' overflows fp16")
    assert weight_types(typed)["head.weight"] == TensorProto.FLOAT


def test_small_weights_are_counted() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[4] x) => (float[4] y)
        <float[4] w = {1.0, 1e-5, 1e-8, 0.0}> { [m] y = Mul (x, w) }"""
    )
    _, plan = to_precision(model, "fp16")
    assert (plan.weights, plan.weights_subnormal, plan.weights_flushed) == (4, 1, 1)


def test_written_out_gelu_stands_and_falls_together(transformer: Make) -> None:
    model = transformer(17)
    erf = nodes(model)["blocks.0/mlp/gelu/Erf"].output[0]
    typed, plan = to_precision(model, "fp16", {erf: TensorRange(-4e4, 4e4)})
    held = {n.node.rsplit("/", 1)[1]: n.sentence for n in plan.held_back}
    assert held.keys() == {"Div", "Erf", "Add", "Mul", "Mul_1"}
    assert held["Mul_1"] == "its GELU is held back by 'blocks.0/mlp/gelu/Erf'"
    # The other GELUs stay low and share its constants: those are stored in both types.
    stored = weight_types(typed)
    for constant in ("gelu.root2", "gelu.one", "gelu.half"):
        assert (stored[constant], stored[f"{constant}/fp16"]) == (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
        )
    onnx.checker.check_model(typed, full_check=True)
    assert parsed_by_tensorrt(typed)[0]


def test_division_outside_a_gelu_stays_fp32() -> None:
    # It may be half of a normalisation that was written out.
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,4] y)
        { [s] a = ReduceMean <keepdims = 1> (x) [d] y = Div (x, a) }"""
    )
    assert to_precision(model, "fp16")[1].counts == {"float32": 2}


def test_output_that_is_also_read_inside() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[4,4] x) => (float[4,4] y, float[4,4] z, float[4,4] v)
        { [a] y = MatMul (x, x) [b] z = MatMul (y, y) [c] v = Softmax (y) }"""
    )
    typed, plan = to_precision(model, "fp16")
    onnx.checker.check_model(typed, full_check=True)
    assert [v.name for v in typed.graph.output] == ["y", "z", "v"]
    assert plan.casts == 3
    assert list(nodes(typed)["b"].input) == ["y/fp16", "y/fp16"]
    assert list(nodes(typed)["c"].input) == ["y"]
    assert lint(typed) == []


def test_constant_nodes_become_weights() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y)
        { [k] c = Constant <value = float[2] {1.0, 2.0}> () [a] y = Add (x, c) }"""
    )
    typed, plan = to_precision(model, "fp16")
    assert weight_types(typed) == {"c": TensorProto.FLOAT16}
    assert plan.casts == 2


def test_quantized_linear_takes_low_scales() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,3] y)
        <float s = {0.1}, int8 z = {0}, int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1, 2, 3}>
        { [q] a = QuantizeLinear (x, s, z) [d] e = DequantizeLinear (a, s, z) [v] c = DequantizeLinear (w, s, z)
          [m] p = MatMul (e, c) [n] y = Add (p, b) }"""
    )
    typed, plan = to_precision(model, "fp16")
    onnx.checker.check_model(typed, full_check=True)
    assert types(plan)["d"] == types(plan)["v"] == types(plan)["m"] == "float16"
    assert parsed_by_tensorrt(typed)[0]


def test_scales_stay_float32_beside_bf16() -> None:
    """Beside FP16 a scale is made to fit; bfloat16's 8 bits would round it, and every code with it."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,3] y)
        <float s = {0.1}, int8 z = {0}, int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1, 2, 3}>
        { [t] r = Relu (x) [q] a = QuantizeLinear (r, s, z) [d] e = DequantizeLinear (a, s, z)
          [v] c = DequantizeLinear (w, s, z) [m] p = MatMul (e, c) [n] y = Add (p, b) }"""
    )
    typed, plan = to_precision(model, "bf16")
    onnx.checker.check_model(typed, full_check=True)
    found = types(plan)
    assert {name: found[name] for name in "tqdvmn"} == {
        **dict.fromkeys("tn", "bfloat16"),
        **dict.fromkeys("qdvm", "float32"),
    }
    assert not plan.held_back  # nothing that a report should call a loss
    scale = next(tensor for tensor in typed.graph.initializer if tensor.name == "s")
    assert scale.data_type == TensorProto.FLOAT


def test_tensorrt_refuses_mixed_types_without_casts(transformer: Make) -> None:
    model = transformer(20)
    typed, _ = to_precision(model, "fp16")
    norm = "blocks.1/norm2"
    by_name = nodes(typed)
    # LayerNormalization of an FP16 tensor with FP32 scale and bias.
    by_name[norm].input[0] = by_name[f"{norm}/to_fp32"].input[0]
    passed, errors = parsed_by_tensorrt(typed)
    assert not passed
    assert errors


@pytest.mark.parametrize(
    ("precision", "ranges", "message"),
    [
        ("fp18", None, r"unknown precision 'fp18'; choose from fp32, fp16, bf16"),
        ("fp16", {"someone else's": TensorRange(0, 1)}, "ranges name no tensor of this graph"),
    ],
)
def test_bad_arguments(
    transformer: Make, precision: str, ranges: dict[str, TensorRange] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        to_precision(transformer(20), precision, ranges)


def test_low_graph_is_not_lowered_again(transformer: Make) -> None:
    typed, _ = to_precision(transformer(20), "fp16")
    with pytest.raises(InputError, match="is float16 already"):
        to_precision(typed, "bf16")


@st.composite
def tangles(draw: st.DrawFn) -> onnx.ModelProto:
    """A random graph of low nodes (Relu), FP32 nodes (Softmax) and nodes that move data (Identity, Concat)."""
    made, tensors = [], ["x"]
    kinds = draw(
        st.lists(
            st.sampled_from(["Relu", "Softmax", "Identity", "Concat", "Concat"]),
            min_size=2,
            max_size=9,
        )
    )
    for i, kind in enumerate(kinds):
        arity = 2 if kind == "Concat" else 1
        inputs = [draw(st.sampled_from(tensors[-4:])) for _ in range(arity)]
        attributes = {"axis": 0} if kind == "Concat" else {}
        made.append(helper.make_node(kind, inputs, [f"t{i}"], f"n{i}", **attributes))
        tensors.append(f"t{i}")
    rows = {"x": 1}
    for node in made:
        rows[node.output[0]] = sum(rows[name] for name in node.input)
    read = {name for node in made for name in node.input}
    outputs = [name for name in tensors[1:] if name not in read]
    graph = helper.make_graph(
        made,
        "tangle",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows[name], 2]) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fewest_casts_by_trial(model: onnx.ModelProto) -> int:
    graph = model.graph
    free = [i for i, node in enumerate(graph.node) if node.op_type in ("Identity", "Concat")]
    best = len(graph.node) * 3
    for choice in itertools.product("lf", repeat=len(free)):
        chosen = dict(zip(free, choice, strict=True))
        kind = [chosen.get(i, "l" if n.op_type == "Relu" else "f") for i, n in enumerate(graph.node)]
        made = {"x": "f"} | {n.output[0]: kind[i] for i, n in enumerate(graph.node)}
        casts = {
            (name, kind[i]) for i, n in enumerate(graph.node) for name in n.input if made[name] != kind[i]
        }
        casts |= {(v.name, "f") for v in graph.output if made[v.name] != "f"}
        best = min(best, len(casts))
    return best


@pytest.mark.slow
@given(tangles())
@settings(max_examples=150, deadline=None)
def test_casts_are_as_few_as_can_be(model: onnx.ModelProto) -> None:
    typed, plan = to_precision(model, "fp16")
    onnx.checker.check_model(typed, full_check=True)
    assert plan.casts == fewest_casts_by_trial(model)
