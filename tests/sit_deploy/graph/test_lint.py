from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sit_deploy.errors import InputError
from sit_deploy.graph.lint import check, lint


def parse(body: str, signature: str = "float[2,4] x) => (float[2,4] y", opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> g ({signature}) {{ {body} }}'
    )


def add_weight(model: onnx.ModelProto, name: str, values: np.ndarray) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def rules(model: onnx.ModelProto, **options: object) -> set[str]:
    return {finding.rule for finding in lint(model, **options)}


def invalid() -> onnx.ModelProto:
    return parse("[a] y = MatMul (x, x)")  # (2, 4) by (2, 4)


def foreign_operator() -> onnx.ModelProto:
    text = '<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> g (float[2,4] x) => (float[2,4] y)'
    return onnx.parser.parse_model(text + "{ [a] z = com.microsoft.FastGelu (x) [b] y = Relu (z) }")


def function() -> onnx.ModelProto:
    model = parse("[a] y = Relu (x)")
    body = [helper.make_node("Relu", ["u"], ["v"])]
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("local", "twice", ["u"], ["v"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def subgraph() -> onnx.ModelProto:
    branch = "g () => (float[2,4] z) { z = Relu (x) }"
    body = f"[c] yes = Constant <value = bool {{1}}> () [i] y = If (yes) <then_branch = {branch}, else_branch = {branch}>"
    return parse(body)


def shape_operator() -> onnx.ModelProto:
    return parse("[a] s = Shape (x) [b] y = Reshape (x, s)")


def runtime_reshape() -> onnx.ModelProto:
    return parse("[b] y = Reshape (x, s)", "float[2,4] x, int64[2] s) => (float[2,4] y")


def open_width() -> onnx.ModelProto:
    return parse("[a] y = Relu (x)", "float[2,w] x) => (float[2,w] y")


def double_cast() -> onnx.ModelProto:
    return parse("[a] d = Cast <to = 11> (x) [b] y = Cast <to = 1> (d)")


def double_weight() -> onnx.ModelProto:
    model = parse("[a] d = Cast <to = 1> (w) [b] y = Mul (x, d)")
    return add_weight(model, "w", np.ones(4, np.float64))


def long_arithmetic() -> onnx.ModelProto:
    model = parse("[a] d = Cast <to = 7> (x) [b] e = Add (d, w) [c] y = Cast <to = 1> (e)")
    return add_weight(model, "w", np.ones(4, np.int64))


def nan_weight() -> onnx.ModelProto:
    return add_weight(parse("[b] y = Mul (x, w)"), "w", np.array([1, np.nan, np.inf, 0], np.float32))


def nan_half_weight() -> onnx.ModelProto:
    model = parse("[a] h = Cast <to = 16> (x) [b] z = Mul (h, w) [c] y = Cast <to = 1> (z)")
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [4], [1.0, float("nan"), 2.0, 0.0])
    model.graph.initializer.append(tensor)
    return model


def runtime_weight() -> onnx.ModelProto:
    signature = "float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,4,4] y"
    return parse("[a] v = Relu (w) [b] y = Conv (x, v)", signature)


def dead_node() -> onnx.ModelProto:
    return parse("[a] y = Relu (x) [b] z = Exp (x)")


def unused_weight() -> onnx.ModelProto:
    return add_weight(parse("[a] y = Relu (x)"), "w", np.ones(4, np.float32))


def unused_input() -> onnx.ModelProto:
    return parse("[a] y = Relu (x)", "float[2,4] x, float[2,4] u) => (float[2,4] y")


def unnamed() -> onnx.ModelProto:
    return parse("y = Relu (x)")


def same_name() -> onnx.ModelProto:
    return parse("[a] z = Relu (x) [a] y = Exp (z)")


def traced() -> onnx.ModelProto:
    model = parse("[a] y = Relu (x)")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/model.py"')
    return model


@pytest.mark.parametrize(
    ("make", "rule", "names"),
    [
        (invalid, "invalid", "model"),
        (foreign_operator, "domain", "FastGelu"),
        (function, "domain", "twice"),
        (subgraph, "control-flow", "If 'i'"),
        (shape_operator, "shape-arithmetic", "Shape 'a'"),
        (runtime_reshape, "shape-arithmetic", "Reshape 'b'"),
        (open_width, "unknown-shape", "'x'"),
        (double_cast, "dtype", "'d'"),
        (double_weight, "dtype", "'w'"),
        (long_arithmetic, "dtype", "'w'"),
        (nan_weight, "non-finite", "'w'"),
        (nan_half_weight, "non-finite", "'w'"),
        (runtime_weight, "static-weights", "Conv 'b'"),
        (dead_node, "unused", "Exp 'b'"),
        (unused_weight, "unused", "'w'"),
        (unused_input, "unused", "'u'"),
        (unnamed, "unnamed", "Relu 'y'"),
        (same_name, "duplicate-name", "'a'"),
        (traced, "metadata", "Relu 'a'"),
    ],
)
def test_breach_is_found_and_named(make: Callable[[], onnx.ModelProto], rule: str, names: str) -> None:
    findings = [finding for finding in lint(make()) if finding.rule == rule]
    assert any(names in finding.where for finding in findings)
    assert not any("\n" in str(finding) for finding in findings)


def test_non_finite_counts() -> None:
    (finding,) = lint(nan_weight())
    assert finding.message.startswith("2 of 4 float32 values")


@pytest.mark.parametrize("opset", [17, 20])
def test_clean_graph_passes(transformer: Callable[..., onnx.ModelProto], opset: int) -> None:
    assert lint(transformer(opset), max_opset=opset) == []
    check(transformer(opset))


def test_opset_above_the_engines(transformer: Callable[..., onnx.ModelProto]) -> None:
    assert rules(transformer(20), max_opset=17) == {"opset"}


def test_open_batch_only_where_asked(transformer: Callable[..., onnx.ModelProto]) -> None:
    model = transformer(20, batch="batch")
    assert lint(model, dynamic_batch=True) == []
    assert rules(model) == {"unknown-shape"}


def test_second_symbol_is_refused() -> None:
    model = parse("[a] y = Relu (x)", "float[batch,w] x) => (float[batch,w] y")
    findings = lint(model, dynamic_batch=True)
    assert {finding.where for finding in findings} == {"tensor 'x'", "tensor 'y'"}
    assert "only the batch 'batch'" in findings[0].message


def test_batch_must_lead_at_the_border() -> None:
    model = parse("[a] y = Transpose <perm = [1, 0]> (x)", "float[batch,4] x) => (float[4,batch] y")
    assert [finding.where for finding in lint(model, dynamic_batch=True)] == ["tensor 'y'"]


def test_dequantized_weight_is_static() -> None:
    signature = "float[1,2,4,4] x) => (float[1,2,4,4] y"
    model = parse("[a] v = DequantizeLinear (w, s) [b] y = Conv (x, v)", signature)
    add_weight(model, "w", np.ones((2, 2, 1, 1), np.int8))
    add_weight(model, "s", np.float32(0.1))
    assert lint(model) == []


def test_check_raises_one_line() -> None:
    with pytest.raises(InputError) as raised:
        check(unused_input())
    assert "[unused] input 'u'" in str(raised.value)
    assert "\n" not in str(raised.value)
