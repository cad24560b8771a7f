from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.bias_correction import LayerError, correct_biases, measure_layers
from calibration.errors import CalibrationError
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layers import find_layers
from calibration.plan import make_plan
from tests.helpers.graphs import exported, images_for, run, scales_of, sqnr_db

EVERYTHING = ["all", "attention", "aggregation", "residual"]


def prepared(
    name: str,
    precision: str = "int8",
    opset: int = 20,
    shifted: bool = False,
    groups: list[str] | None = EVERYTHING,
) -> tuple[onnx.ModelProto, tuple[str, ...], Scales]:
    model = exported(name, 1, opset)
    layers = find_layers(model)
    names = make_plan(layers, precision, groups).quantized
    return model, names, scales_of(model, [layers[n] for n in names], images_for(model), precision, shifted)


def alone(
    model: onnx.ModelProto, name: str, image: np.ndarray, scales: Scales, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return one layer's output, and what it is where the layer alone is quantized: of two graphs run for themselves."""
    output = next(node.output[0] for node in model.graph.node if node.name == name)
    low = insert_qdq(model, [name], scales, precision)
    # with a shift the layer's own output is only whole with its bias
    reader = next((node for node in model.graph.node if output in node.input), None)
    if reader is not None and reader.op_type == "Add" and reader.name.endswith("/bias"):
        output = reader.output[0]
    return run(model, image, [output])[output], run(low, image, [output])[output]


@pytest.mark.parametrize(
    ("name", "precision", "opset", "shifted"),
    [("sit", "int8", 17, False), ("vit", "int8", 20, True), ("sit", "fp8", 20, False)],
)
def test_equals_a_numpy_reference(name: str, precision: str, opset: int, shifted: bool) -> None:
    model, names, scales = prepared(name, precision, opset, shifted)
    images = images_for(model, 2, seed=3)
    errors = measure_layers(model, names, [np.concatenate(images)], scales, precision)
    assert list(errors) == list(names)
    layers = find_layers(model)
    chosen = [n for n in names if n.startswith(("stem", "blocks.1", "blocks.5", "tsm.0", "head"))]
    for layer in map(layers.__getitem__, chosen):
        pairs = [alone(model, layer.name, image, scales, precision) for image in images]
        before, after = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
        difference = after - before
        axes = tuple(
            axis for axis in range(before.ndim) if axis != (1 if layer.op_type == "Conv" else before.ndim - 1)
        )
        found = errors[layer.name]
        if layer.weight is None:
            assert found.mean is None
            assert found.sqnr_db == pytest.approx(sqnr_db(after, before), abs=0.01)
        else:
            np.testing.assert_allclose(found.mean, difference.mean(axes), atol=1e-5 * np.abs(before).max())
            # the power is that of the layer's own output: without a bias that is an Add of its own
            signal = before - (bias_behind(model, layer.name))
            assert found.sqnr_db == pytest.approx(sqnr_db(signal + difference, signal), abs=0.01)


def bias_behind(model: onnx.ModelProto, name: str) -> np.ndarray | float:
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found = values.get(f"{name}/bias/value")
    return 0.0 if found is None else numpy_helper.to_array(found)


def test_batch_size_and_order_have_no_part() -> None:
    model, names, scales = prepared("sit", groups=None)
    images = images_for(model)
    one = measure_layers(model, names, images, scales)
    other = measure_layers(exported("sit", "batch"), names, [np.concatenate(images[::-1])], scales)
    for name in names:
        assert one[name].sqnr_db == pytest.approx(other[name].sqnr_db, abs=1e-6)
        np.testing.assert_allclose(one[name].mean, other[name].mean, atol=1e-9)


def perfect() -> onnx.ModelProto:
    """Weights and inputs that int8 holds as they are."""
    return onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,1,2,3] images) => (float[1,1,2,2] y, float[1,1,2,2] z)
        <float[3,2] w = {127,1,2,127,3,4}, float[3,2] v = {0,0,0,0,0,0}>
        { [good] y = MatMul (images, w) [dead] z = MatMul (images, v) }"""
    )


def test_a_perfect_layer() -> None:
    image = np.float32([[[[1, -2, 3], [100, -128, 127]]]])
    errors = measure_layers(perfect(), ["good", "dead"], [image], Scales({"images": 1.0}))
    for name in ("good", "dead"):
        assert errors[name].sqnr_db == math.inf
        np.testing.assert_array_equal(errors[name].mean, [0, 0])


def test_a_layer_that_is_all_error() -> None:
    low = replace(Scales({"images": 1.0}), weights={"dead": np.full((3, 2), 5, np.int8)})
    error = measure_layers(perfect(), ["dead"], [np.ones((1, 1, 2, 3), np.float32)], low)["dead"]
    assert error.sqnr_db == -math.inf
    np.testing.assert_array_equal(error.mean, [15, 15])


@pytest.mark.parametrize(("name", "shifted"), [("sit", False), ("vit", True)])
def test_corrected_biases_leave_no_mean_error(name: str, shifted: bool) -> None:
    model, names, scales = prepared(name, shifted=shifted, groups=["all"])
    images = images_for(model, 3)
    errors = measure_layers(model, names, images, scales)
    low = insert_qdq(model, names, scales)
    corrected = correct_biases(low, errors)
    assert [(n.name, n.op_type) for n in corrected.graph.node] == [
        (n.name, n.op_type) for n in low.graph.node
    ]
    with_bias = 0
    for layer in names:
        # the layer for itself once more, its bias corrected in the graph in which it alone is quantized
        single = correct_biases(insert_qdq(model, [layer], scales), {layer: errors[layer]})
        output, means = output_of(model, layer), []
        for image in images:
            difference = run(single, image, [output])[output] - run(model, image, [output])[output]
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
    assert with_bias > 15


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


def test_bad_input() -> None:
    model, names, scales = prepared("sit", groups=None)
    with pytest.raises(CalibrationError, match="no images to measure layers on"):
        measure_layers(model, names, [], scales)
    with pytest.raises(CalibrationError, match="no layer 'nowhere'"):
        measure_layers(model, ["nowhere"], images_for(model), scales)
    with pytest.raises(CalibrationError, match="no node 'nowhere'"):
        correct_biases(model, {"nowhere": LayerError(1.0, None)})
    image = images_for(model, 1)[0]
    image[0, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError, match=r"output of 'blocks.0/attn/qkv' is not finite"):
        measure_layers(model, names, [image], scales)
