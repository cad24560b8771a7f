from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.errors import CalibrationError
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layer_error import measure_layer_errors
from calibration.layers import find_layers
from tests.helpers.graphs import exported, images_for, prepared, run, sqnr_db


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "opset", "shifted"),
    [("sit", "int8", 17, False), ("vit", "int8", 20, True), ("sit", "fp8", 20, False)],
)
def test_equals_a_numpy_reference(name: str, precision: str, opset: int, shifted: bool) -> None:
    model, names, scales = prepared(name, precision, opset, shifted)
    images = images_for(model, 2, seed=3)
    errors = measure_layer_errors(model, names, [np.concatenate(images)], scales, precision)
    assert list(errors) == list(names)
    layers = find_layers(model)
    chosen = [n for n in names if n.startswith(("stem.0", "blocks.1", "tsm.0", "head"))]
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
    one = measure_layer_errors(model, names, images, scales)
    other = measure_layer_errors(exported("sit", "batch"), names, [np.concatenate(images[::-1])], scales)
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
    errors = measure_layer_errors(perfect(), ["good", "dead"], [image], Scales({"images": 1.0}))
    for name in ("good", "dead"):
        assert errors[name].sqnr_db == math.inf
        np.testing.assert_array_equal(errors[name].mean, [0, 0])


def test_a_layer_that_is_all_error() -> None:
    low = replace(Scales({"images": 1.0}), weights={"dead": np.full((3, 2), 5, np.int8)})
    error = measure_layer_errors(perfect(), ["dead"], [np.ones((1, 1, 2, 3), np.float32)], low)["dead"]
    assert error.sqnr_db == -math.inf
    np.testing.assert_array_equal(error.mean, [15, 15])


def test_few_tokens_with_most_of_the_power_do_not_hide_the_others() -> None:
    """One token in four of a thousand times the rest: its codes are good, and the others round to 0."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,1,4,2] images) => (float[1,1,4,2] y)
        <float[2,2] w = {127,1,-2,127}> { [fc] y = MatMul (images, w) }"""
    )
    image = np.float32([[[[1270, 635], [1, -2], [3, 1], [-2, 2]]]])
    lost = measure_layer_errors(model, ["fc"], [image], Scales({"images": 10.0}))["fc"]
    assert lost.sqnr_db > 40
    assert lost.worst_db == lost.token_db < 20
    alike = np.float32([[[[100.3, 50.2], [90.6, -80.3], [70.4, 99.7], [-88.4, 60.1]]]])
    assert measure_layer_errors(model, ["fc"], [alike], Scales({"images": 1.0}))["fc"].worst_db > 40
    # the mean in dB over the tokens, each with its own power and error
    w, x = np.float64([[127, 1], [-2, 127]]), image[0, 0].astype(np.float64)
    y, z = x @ w, np.clip(np.rint(x / 10), -128, 127) * 10 @ w
    noise = np.maximum(np.square(z - y).sum(1), 1e-30)
    assert lost.token_db == pytest.approx((10 * np.log10(np.square(y).sum(1) / noise)).mean(), abs=1e-4)


@pytest.mark.slow
def test_bad_input() -> None:
    model, names, scales = prepared("sit", groups=None)
    with pytest.raises(CalibrationError, match="no images to measure layers on"):
        measure_layer_errors(model, names, [], scales)
    with pytest.raises(CalibrationError, match="no layer 'nowhere'"):
        measure_layer_errors(model, ["nowhere"], images_for(model), scales)
    image = images_for(model, 1)[0]
    image[0, 0, 0, 0] = np.inf
    with pytest.raises(CalibrationError, match=r"output of 'blocks.0/attn/qkv' is not finite"):
        measure_layer_errors(model, names, [image], scales)
