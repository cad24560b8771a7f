from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.bias_correction import correct_biases
from calibration.errors import CalibrationError
from calibration.insert_qdq import insert_qdq
from calibration.layer_error import LayerError, measure_layer_errors
from tests.helpers.graphs import exported, images_for, prepared, run


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shifted"), [("sit", False), ("vit", True)])
def test_corrected_biases_leave_no_mean_error(name: str, shifted: bool) -> None:
    model, names, scales = prepared(name, shifted=shifted, groups=["all"])
    images = images_for(model, 3)
    errors = measure_layer_errors(model, names, images, scales)
    low = insert_qdq(model, names, scales)
    corrected = correct_biases(low, errors)
    assert [(n.name, n.op_type) for n in corrected.graph.node] == [
        (n.name, n.op_type) for n in low.graph.node
    ]
    with_bias = 0
    # every kind of layer, and every second block
    some = [layer for layer in names if not layer.startswith(("blocks.0", "blocks.2", "blocks.4", "tsm.1"))]
    outputs = {layer: output_of(model, layer) for layer in some}
    floats = [run(model, image, list(outputs.values())) for image in images]
    for layer, output in outputs.items():
        # the layer for itself once more, its bias corrected in the graph in which it alone is quantized
        single = correct_biases(insert_qdq(model, [layer], scales), {layer: errors[layer]})
        means = []
        for image, before in zip(images, floats, strict=True):
            difference = run(single, image, [output])[output] - before[output]
            means.append(
                difference.astype(np.float64).mean(
                    (0, 2, 3) if difference.ndim == 4 else tuple(range(difference.ndim - 1))
                )
            )
        scale = np.abs(errors[layer].mean).max()
        if output != layer or layer.startswith("stem") or layer == "head":
            with_bias += 1
            # not 0: another order of sums tips a code over now and then
            assert np.abs(np.mean(means, axis=0)).max() < 0.05 * scale
    assert with_bias >= 10


def output_of(model: onnx.ModelProto, layer: str) -> str:
    """Return the tensor that holds a layer's output with its bias."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    return outputs.get(f"{layer}/bias", outputs[layer])


def test_a_layer_without_a_bias_is_left_alone() -> None:
    model, _, scales = prepared("sit")
    low = insert_qdq(model, ["blocks.0/attn/qkv"], scales)
    error = LayerError(20.0, np.ones(96))
    assert correct_biases(low, {"blocks.0/attn/qkv": error}) == low


def test_a_bias_that_other_layers_share() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,2] x) => (float[1,2] y, float[1,2] z) <float[2,2] w = {1,2,3,4}, float[2] b = {1,2}>
        { [fc] p = MatMul (x, w) [bias] y = Add (p, b) [other] z = Gemm (x, w, b) }"""
    )
    x = np.float32([[3, 5]])
    before, after = run(model, x), run(correct_biases(model, {"fc": LayerError(9.0, np.array([10, 20]))}), x)
    np.testing.assert_array_equal(after["y"], before["y"] - [[10, 20]])
    np.testing.assert_array_equal(after["z"], before["z"])


def test_a_node_of_another_graph_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no node 'nowhere'"):
        correct_biases(exported("sit"), {"nowhere": LayerError(1.0, None)})
