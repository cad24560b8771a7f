"""What an engine is told of an ONNX file. Types of products are in tensorrt/test_layers.py, batches in test_base.py."""

from __future__ import annotations

import onnx
import pytest

from engines.graph_file import attention_graph, attention_nodes

ATTENTION = """
    [scores] s = MatMul (q, k) {middle} [softmax] p = Softmax (t) {after} [mix] y = MatMul (u, v)
"""


def graph(body: str, weights: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[1,2,2] a, float[1,2,2] b, float[1,2,2] c) => (float[1,2,2] y) <float[2,2] w = {{1,2,3,4}}, float one = {{1.0}} {weights}>
        {{ q = Relu (a) k = Relu (b) v = Relu (c) {body} }}"""
    )


@pytest.mark.parametrize(
    "middle", ["t = Mul (s, one)", "m = Div (s, one) t = Cast <to = 1> (m)", "t = Add (s, w)"]
)
def test_attention_is_found(middle: str) -> None:
    for after in ("u = Cast <to = 1> (p)", "u = Mul (one, p)"):
        assert attention_nodes(graph(ATTENTION.format(middle=middle, after=after))) == ("softmax",)


@pytest.mark.parametrize(
    "body",
    [
        # the assignment of a token slimming module: of a layer with weights
        "[fc] s = MatMul (q, w) t = Mul (s, one) [softmax] p = Softmax (t) u = Mul (p, one) [mix] y = MatMul (u, v)",
        # probabilities that a layer with weights reads
        "[scores] s = MatMul (q, k) t = Mul (s, one) [softmax] p = Softmax (t) u = Mul (p, one) [fc] y = MatMul (u, w)",
        # two readers
        "[scores] s = MatMul (q, k) [softmax] p = Softmax (s) [mix] z = MatMul (p, v) y = Add (z, p)",
        # of an input, and for an output
        "[softmax] y = Softmax (a)",
        "[softmax] p = Softmax (q) y = Relu (p)",
    ],
)
def test_no_attention(body: str) -> None:
    assert attention_nodes(graph(body)) == ()


def test_attention_as_one_operator() -> None:
    assert attention_nodes(onnx.load_from_string(attention_graph())) == ("attention",)


def test_attention_in_8_bits() -> None:
    weights = ", float scale = {0.1}, int8 zero = {0}"
    body = """
        qq = QuantizeLinear (q, scale, zero) qd = DequantizeLinear (qq, scale, zero)
        [scores] s = MatMul (qd, k) [softmax] p = Softmax (s)
        pq = QuantizeLinear (p, scale, zero) pd = DequantizeLinear (pq, scale, zero) [mix] y = MatMul (pd, v)
    """
    assert attention_nodes(graph(body, weights)) == ("softmax",)
    layer = """
        wq = QuantizeLinear (w, scale, zero) wd = DequantizeLinear (wq, scale, zero)
        [fc] s = MatMul (q, wd) [softmax] p = Softmax (s) [mix] y = MatMul (p, v)
    """
    assert attention_nodes(graph(layer, weights)) == ()
