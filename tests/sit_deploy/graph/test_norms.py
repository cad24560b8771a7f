from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from engines import get
from sit_deploy.graph import lint
from sit_deploy.graph.norms import float_form, fold_norms

Make = Callable[..., onnx.ModelProto]


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def affine(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, bool]]:
    """Scale, and whether there is a shift, of each LayerNorm."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    norms = (node for node in model.graph.node if node.op_type == "LayerNormalization")
    return {node.name: (constants[node.input[1]], len(node.input) > 2) for node in norms}


@pytest.mark.parametrize("opset", [17, 20])
def test_the_same_logits_without_scales_and_shifts(transformer: Make, images: np.ndarray, opset: int) -> None:
    model = transformer(opset)
    before = affine(model)
    assert all((scale != 1).any() and shift for scale, shift in before.values())
    folded = fold_norms(model)
    after = affine(folded)
    plain = {name for name, (scale, shift) in after.items() if (scale == 1).all() and not shift}
    assert after.keys() == before.keys() and len(plain) >= 4  # two a block
    exact = outputs(model, images)
    assert np.abs(outputs(folded, images) - exact).max() < 1e-5 * exact.std()
    lint.check(folded, max_opset=opset)
    assert fold_norms(folded) is folded


def test_what_else_reads_a_norm_keeps_its_scale() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[1,2,3] x) => (float[1,2,2] y, float[1,2,3] z)
        <float[3] s = {2, 3, 4}, float[3] b = {1, 0, 0}, float[3,2] w = {1, 2, 3, 4, 5, 6}>
        { [n] a = LayerNormalization (x, s, b) [p] y = MatMul (a, w) [r] z = Relu (a) }"""
    )
    assert fold_norms(model) is model


def test_only_engines_that_gain_by_it_get_it(transformer: Make) -> None:
    model = transformer(20)
    assert float_form(model, None) is model is float_form(model, get("onnxruntime"))
    assert float_form(model, get("openvino")) is not model


def test_readers_with_a_shared_weight_a_gemm_and_none_of_a_bias() -> None:
    """The weight that another product shares keeps its values there."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2,3] x) => (float[2,3] y, float[2,3] z, float[2,3] u)
        <float[3] s = {2, 3, 4}, float[3] b = {1, -1, 5}, float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 10}, float[3] c = {1, 2, 3}>
        { [n] a = LayerNormalization (x, s, b) [p] y = Gemm <transB = 1> (a, w, c) [q] z = MatMul (a, w)
          [o] u = MatMul (x, w) }"""
    )
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    folded = fold_norms(model)
    assert not affine(folded)["n"][1]
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for m in (model, folded)
    )
    for theirs, ours in zip(before, after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
