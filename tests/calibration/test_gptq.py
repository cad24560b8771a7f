from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from calibration import gptq
from calibration.errors import CalibrationError
from calibration.formats import FP8, GRIDS, INT8, Grid, broadcast_along, weight_scale
from calibration.gptq import DAMPING, gptq_codes, gptq_matrix_codes
from calibration.layers import find_layers
from calibration.plan import make_plan
from tests.helpers.graphs import exported, images_for, run

BOTH = pytest.mark.parametrize("grid", [INT8, FP8], ids=lambda grid: grid.name)


def correlated(inputs: int, seed: int = 0, rows: int = 600) -> np.ndarray:
    """Return inputs (rows, inputs) of low rank, with a little noise: as activations are."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, inputs // 4)) @ random.normal(size=(inputs // 4, inputs))
    return (mixed + 0.3 * random.normal(size=(rows, inputs))).astype(np.float32)


def weight_of(outputs: int, inputs: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)


def error(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, hessian: np.ndarray) -> float:
    lost = weight - codes.astype(np.float64) * scale[:, None]
    return float(np.einsum("oi,ij,oj", lost, hessian.astype(np.float64), lost))


def by_elimination(weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    """Optimal Brain Quantization in a fixed order, from its definition.

    After each input is rounded, the weights of all later ones move to where the error is smallest: least squares.
    """
    inputs = weight.shape[1]
    h = hessian.astype(np.float64)
    h += DAMPING * np.diag(h).mean() * np.eye(inputs)
    order = np.argsort(-np.diag(h), kind="stable")
    codes = np.zeros(weight.shape, grid.dtype)
    for row in range(len(weight)):
        wanted = weight[row].astype(np.float64)
        for step, i in enumerate(order):
            value = np.clip(wanted[i], -grid.largest * scale[row], grid.largest * scale[row])
            codes[row, i] = grid.codes(np.float64(value), np.float64(scale[row]))
            done, rest = order[: step + 1], order[step + 1 :]
            lost = weight[row, done] - codes[row, done].astype(np.float64) * scale[row]
            # the gradient of |(w - q) X|² with respect to the rest of q is 0
            wanted[rest] = weight[row, rest] + np.linalg.solve(
                h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ lost
            )
    return codes


@BOTH
def test_equals_elimination_from_its_definition(grid: Grid) -> None:
    x, weight = correlated(24), weight_of(5, 24)
    hessian, scale = x.T @ x, weight_scale(weight, 0, grid)
    codes = gptq_matrix_codes(weight, hessian, scale, grid)
    assert codes.dtype == grid.dtype
    expected = by_elimination(weight, hessian, scale, grid)
    np.testing.assert_array_equal(codes.astype(float), expected.astype(float))


def test_saturating_weights_equal_elimination_too() -> None:
    x, weight = correlated(24), weight_of(5, 24)
    hessian, scale = x.T @ x, weight_scale(weight, 0, INT8) * np.float32(0.5)
    codes = gptq_matrix_codes(weight, hessian, scale, INT8)
    assert np.abs(codes.astype(int)).max() == 127
    np.testing.assert_array_equal(codes, by_elimination(weight, hessian, scale, INT8))


@BOTH
@pytest.mark.parametrize("block", [1, 7, 40, 1000])
def test_blocks_change_nothing(grid: Grid, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = correlated(150), weight_of(8, 150)
    hessian, scale = x.T @ x, weight_scale(weight, 0, grid)
    expected = gptq_matrix_codes(weight, hessian, scale, grid)
    monkeypatch.setattr(gptq, "_BLOCK", block)
    np.testing.assert_array_equal(
        gptq_matrix_codes(weight, hessian, scale, grid).astype(float), expected.astype(float)
    )


@BOTH
def test_error_is_clearly_below_nearest(grid: Grid) -> None:
    gains = []
    for seed in range(8):
        x, weight = correlated(64, seed), weight_of(32, 64, seed + 100)
        hessian, scale = x.T @ x, weight_scale(weight, 0, grid)
        nearest = error(weight, grid.weight_codes(weight, scale[:, None]), scale, hessian)
        found = error(weight, gptq_matrix_codes(weight, hessian, scale, grid), scale, hessian)
        gains.append(10 * np.log10(nearest / found))
    assert min(gains) > 0
    assert np.mean(gains) > 3


def test_never_far_from_the_best_codes_of_all() -> None:
    """Against every choice of the two codes around each weight."""
    x, weight = correlated(8, rows=50), weight_of(1, 8)
    scale, hessian = np.float32([0.4]), x.T @ x
    around = [np.floor(value / scale[0]) + np.array([0, 1]) for value in weight[0]]
    errors = [error(weight, np.array([choice]), scale, hessian) for choice in itertools.product(*around)]
    found = error(weight, gptq_matrix_codes(weight, hessian, scale, INT8, damping=0), scale, hessian)
    assert found <= np.percentile(errors, 5)


@BOTH
def test_uncorrelated_inputs_are_rounded_to_nearest(grid: Grid) -> None:
    weight = weight_of(6, 30)
    scale = weight_scale(weight, 0, grid)
    hessian = np.diag(np.random.default_rng(0).uniform(0.1, 9, 30))
    np.testing.assert_array_equal(
        gptq_matrix_codes(weight, hessian, scale, grid).astype(float),
        grid.weight_codes(weight, scale[:, None]).astype(float),
    )


@pytest.mark.parametrize("alive", [0, 20])
def test_dead_inputs_are_rounded_to_nearest_and_disturb_nothing(alive: int) -> None:
    weight = weight_of(6, 30)
    scale = weight_scale(weight, 0, INT8)
    x = np.zeros((100, 30), np.float32)
    x[:, :alive] = correlated(20, rows=100)[:, :alive]
    codes = gptq_matrix_codes(weight, x.T @ x, scale, INT8)
    nearest = INT8.weight_codes(weight, scale[:, None])
    np.testing.assert_array_equal(codes[:, alive:], nearest[:, alive:])
    if alive:
        hessian = (x.T @ x)[:alive, :alive]
        damping = DAMPING * 20 / 30  # of the mean diagonal, dead inputs counted
        expected = gptq_matrix_codes(weight[:, :alive], hessian, scale, INT8, damping)
        assert np.mean(codes[:, :alive] == expected) > 0.95
        assert not np.array_equal(codes[:, :alive], nearest[:, :alive])


def conv_model(attributes: str) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=36).round(3)
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[1,2,7,6] images) => (float[1,3,h,w] y)
        <float[3,2,3,2] k = {{{", ".join(map(str, weight))}}}> {{ [conv] y = Conv <{attributes}> (images, k) }}"""
    )


@pytest.mark.parametrize(
    "attributes", ["strides = [1,1]", "pads = [1,0,2,1]", "pads = [0,1,1,0], strides = [2,3]"]
)
def test_windows_are_those_of_the_convolution(attributes: str) -> None:
    model = conv_model(attributes)
    images = images_for(model, 1)[0]
    (node,) = model.graph.node
    kernel = onnx.numpy_helper.to_array(model.graph.initializer[0])
    y = run(model, images)["y"]
    windows = gptq._windows(images, node, kernel.shape[2:])
    np.testing.assert_allclose((windows @ kernel.reshape(3, -1).T).T.reshape(y.shape), y, atol=1e-5)
    codes = gptq_codes(model, ["conv"], [images, images])["conv"]
    rows = kernel.reshape(3, -1)
    expected = gptq_matrix_codes(rows, windows.T @ windows, weight_scale(kernel, 0, INT8), INT8)
    np.testing.assert_array_equal(codes, expected.reshape(kernel.shape))


@pytest.mark.parametrize("attributes", ["dilations = [2,1]", 'auto_pad = "SAME_UPPER"'])
def test_other_convolutions_are_refused(attributes: str) -> None:
    model = conv_model(attributes)
    with pytest.raises(CalibrationError, match="'conv' has groups, dilations or automatic padding"):
        gptq_codes(model, ["conv"], images_for(model, 1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_layers_of_a_graph(precision: str) -> None:
    """Every layer is rounded against the inputs that the float graph gives it, all tokens of all images."""
    model = exported("sit")
    layers, images, grid = find_layers(model), images_for(model, 5), GRIDS[precision]
    names = make_plan(layers, precision, ["all"]).quantized
    codes = gptq_codes(model, names, [np.concatenate(images[:3]), *images[3:]], precision)
    assert list(codes) == list(names)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    lower = 0
    for layer in map(layers.__getitem__, names):
        weight = weights[layer.weight]
        scale = weight_scale(weight, layer.channel_axis, grid)
        nearest = grid.weight_codes(weight, broadcast_along(scale, layer.channel_axis, weight.ndim))
        assert codes[layer.name].shape == weight.shape
        assert codes[layer.name].dtype == grid.dtype
        if layer.op_type == "Conv":
            continue
        x = np.concatenate([run(model, image, layer.inputs)[layer.inputs[0]] for image in images])
        x = x.reshape(-1, x.shape[-1])
        turned = layer.channel_axis == 1
        rows, low, near = (a.T if turned else a for a in (weight, codes[layer.name], nearest))
        expected = gptq_matrix_codes(rows, x.T @ x, scale, grid)
        # Hessians are summed in another order: a code now and then may tip over
        assert np.mean(low.astype(float) == expected.astype(float)) > 0.99
        lower += error(rows, low, scale, x.T @ x) < error(rows, near, scale, x.T @ x)
    assert lower >= len([name for name in names if not name.startswith("stem")]) - 1


class Images:
    """A stream that counts how often it was read."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images, self.passes = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        return iter(self.images)


def test_several_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported("sit")
    names = make_plan(find_layers(model)).quantized
    once, often = Images(images_for(model)), Images(images_for(model))
    calls: list[tuple[int, int]] = []
    expected = gptq_codes(model, names, once)
    monkeypatch.setattr(gptq, "_HELD", 96**2)
    codes = gptq_codes(model, names, often, "int8", lambda text, *step: calls.append(step))
    assert once.passes == 1
    assert often.passes > 3
    assert calls == [(i + 1, 4 * often.passes) for i in range(4 * often.passes)]
    assert list(codes) == list(expected)
    for name in names:
        np.testing.assert_array_equal(codes[name], expected[name])


def test_bad_input() -> None:
    model = exported("sit")
    with pytest.raises(CalibrationError, match="no images"):
        gptq_codes(model, ["head"], [])
    image = images_for(model, 1)[0]
    image[0, 1, 2, 3] = np.nan
    with pytest.raises(CalibrationError, match="'reshape' is not finite"):
        gptq_codes(model, ["head"], [image])
