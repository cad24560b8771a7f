from __future__ import annotations

import json
from collections.abc import Callable

import onnx
import pytest

from sit_deploy.errors import InputError
from sit_deploy.graph.inspect import count_macs, node_macs, summarize
from sit_deploy.graph.precision import to_precision


def transformer_macs(images: int) -> dict[str, int]:
    """The MACs of the test transformer, from its layer sizes."""
    dim, hidden, heads = 16, 48, 2

    def block(tokens: int) -> int:
        attention = 2 * heads * tokens * tokens * (dim // heads)
        return tokens * (3 * dim * dim + dim * dim + 2 * dim * hidden) + attention

    stem = 16 * 8 * 3 * 9 + 16 * dim * 8
    slimming = 16 * (dim * dim // 2 + dim // 2 * 8) + 8 * 16 * dim
    parts = {
        "patch_embed": stem,
        "blocks.0": block(17),
        "tsm.0": slimming,
        "blocks.1": block(9),
        "other": dim * 10,
    }
    return {name: images * count for name, count in parts.items()}


@pytest.mark.parametrize(("batch", "images"), [(2, 2), (1, 1), ("batch", 1)])
def test_macs_are_exact(transformer: Callable[..., onnx.ModelProto], batch: int | str, images: int) -> None:
    model = transformer(20, batch=batch)
    expected = transformer_macs(images)
    assert count_macs(model) == sum(expected.values())
    assert {b.name: b.macs for b in summarize(model).blocks if b.macs} == expected


def test_grouped_convolution_and_transposed_gemm() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,4,5,5] x, float[8,2,3,3] w, float[7,6] a, float[7,9] b) => (float[1,8,3,3] y, float[6,9] z)
        { [c] y = Conv <group = 2> (x, w)  [d] z = Gemm <transA = 1> (a, b) }"""
    )
    assert node_macs(model) == {"y": 8 * 9 * 2 * 9, "z": 6 * 9 * 7}


def test_unknown_shape_is_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x, int64[n] s, float[4,4] w) => (float y)
        { [r] z = Reshape (x, s)  [m] y = MatMul (z, w) }"""
    )
    with pytest.raises(InputError, match="node 'm'"):
        count_macs(model)


def test_summary_of_a_low_precision_graph(transformer: Callable[..., onnx.ModelProto]) -> None:
    model = transformer(20)
    before = summarize(model)
    after = summarize(to_precision(model, "fp16")[0])
    assert before.low_precision_fraction == 0.0
    assert after.low_precision_fraction == 1.0
    assert after.macs_by_dtype == {"float16": before.macs}
    assert after.parameters == before.parameters
    norms = 6 * 2 * 16
    assert after.parameters_by_dtype["float32"] == {"count": norms, "bytes": 4 * norms}
    assert after.parameter_bytes == 4 * norms + 2 * (before.parameters - norms)
    assert before.operators["LayerNormalization"] == 6
    assert [(i.name, i.dtype, i.shape) for i in after.inputs] == [("images", "float32", (2, 3, 8, 8))]
    assert json.loads(json.dumps(after.to_dict()))["low_precision_fraction"] == 1.0


def test_convolutions_without_bfloat16_show_in_the_fraction(
    transformer: Callable[..., onnx.ModelProto],
) -> None:
    summary = summarize(to_precision(transformer(20), "bf16")[0])
    expected = transformer_macs(2)
    stem = expected["patch_embed"] / sum(expected.values())
    assert summary.low_precision_fraction == pytest.approx(1 - stem)


def test_dequantized_operands_count_as_quantized() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,3] y)
        <float s = {0.1}, int8 z = {0}, int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        { [q] a = QuantizeLinear (x, s, z) [d] b = DequantizeLinear (a, s, z) [v] c = DequantizeLinear (w, s, z)
          [m] y = MatMul (b, c) }"""
    )
    summary = summarize(model)
    assert summary.macs_by_dtype == {"int8": 24}
    assert summary.parameters_by_dtype["int8"] == {"count": 13, "bytes": 13}
