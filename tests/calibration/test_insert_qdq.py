from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from calibration.errors import CalibrationError
from calibration.formats import GRIDS, broadcast_along, float16_scale, shifted_scale, weight_scale
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layers import Layer, find_layers
from calibration.plan import make_plan
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import to_precision
from tests.helpers.graphs import exported, images_for, run, scales_of, sqnr_db

EVERYTHING = ("all", "attention", "aggregation", "residual")


def quantized(
    model: onnx.ModelProto,
    groups: tuple[str, ...] | None = None,
    precision: str = "int8",
    shifted: bool = False,
) -> tuple[onnx.ModelProto, list[Layer], Scales]:
    """Return a graph with Q/DQ, the layers that have it, and the scales."""
    layers = find_layers(model)
    chosen = [layers[name] for name in make_plan(layers, precision, groups).quantized]
    scales = scales_of(model, chosen, images_for(model), precision, shifted)
    return insert_qdq(model, [layer.name for layer in chosen], scales, precision), chosen, scales


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def convolve(x: np.ndarray, weight: np.ndarray, node: onnx.NodeProto) -> np.ndarray:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    down, across = attributes.get("strides", [1, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::down, ::across]
    return np.einsum("bchwij,ocij->bohw", windows, weight)


def with_bias(model: onnx.ModelProto, layer: Layer) -> tuple[str, np.ndarray | float]:
    """Return the tensor that holds a layer's output with its bias, and the bias."""
    values = constants(model)
    node = next(node for node in model.graph.node if node.name == layer.name)
    if layer.op_type in ("Conv", "Gemm"):
        bias = values[node.input[2]]
        return node.output[0], bias[:, None, None] if layer.op_type == "Conv" else bias
    reader = next(other for other in model.graph.node if node.output[0] in other.input)
    if layer.weight is None or reader.op_type != "Add" or not any(name in values for name in reader.input):
        return node.output[0], 0.0
    return reader.output[0], values[next(name for name in reader.input if name in values)]


def reference(
    model: onnx.ModelProto, layer: Layer, operands: list[np.ndarray], scales: Scales, precision: str
) -> np.ndarray:
    """Compute one layer in NumPy with its operands rounded: asymmetrically where there is a shift, without its bias."""
    grid = GRIDS[precision]
    rounded = []
    for name, x in zip(layer.inputs, operands, strict=True):
        scale, offset = scales.activations[name], np.float32(scales.offset(name))
        codes = grid.codes(x - offset, scale).astype(np.float64)
        rounded.append(codes * scale + float(offset))
    if layer.weight is None:
        return rounded[0] @ rounded[-1] if layer.op_type == "MatMul" else rounded[0] + rounded[-1]
    weight = constants(model)[layer.weight]
    scale = broadcast_along(weight_scale(weight, layer.channel_axis, grid), layer.channel_axis, weight.ndim)
    weight = grid.weight_codes(weight, scale).astype(np.float64) * scale
    if layer.op_type == "Conv":
        node = next(node for node in model.graph.node if node.name == layer.name)
        return convolve(rounded[0], weight, node)
    return rounded[0] @ (weight if layer.channel_axis == 1 else weight.T)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "vit"])
@pytest.mark.parametrize(("precision", "shifted"), [("int8", False), ("int8", True), ("fp8", False)])
def test_every_layer_equals_a_numpy_reference(name: str, precision: str, shifted: bool) -> None:
    model = exported(name)
    low, layers, scales = quantized(model, EVERYTHING, precision, shifted)
    assert bool(scales.shifts) == shifted
    outputs = [with_bias(model, layer) for layer in layers]
    names = [name for layer in layers for name in layer.inputs] + [name for name, _ in outputs]
    # other images than the scales were chosen for: some values saturate
    values = run(low, 1.5 * images_for(model, 1, seed=9)[0], list(dict.fromkeys(names)))
    for layer, (output, bias) in zip(layers, outputs, strict=True):
        operands = [values[name] for name in layer.inputs]
        expected = reference(model, layer, operands, scales, precision) + bias
        error = np.abs(values[output] - expected).max() / np.abs(expected).max()
        assert error < 1e-5, layer.name


def test_shifts_are_exact() -> None:
    """W·x = W·(x - c) + c·W·1: with codes that lose nothing, a shifted graph computes what the float graph does."""
    weight = np.random.default_rng(0).integers(-126, 127, (2, 9))
    weight[:, 4] = 127
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[1,1,4,4] images) => (float[1,2,4,4] a, float[1,2,2,2] b, float[1,1,4,3] c, float[1,1,4,3] d)
        <float[2,1,3,3] w = {{{", ".join(map(str, weight.ravel()))}}}, float[2] wb = {{7, -3}},
         float[2,1,2,2] v = {{127,2,3,4, 127,-6,7,8}},
         float[4,3] m = {{127,1,2, 3,127,5, 6,7,127, 9,10,11}}, float[3] mb = {{1,2,3}}>
        {{ [conv] a = Conv <pads = [1,1,1,1]> (images, w, wb)
           [conv2] b = Conv <pads = [0,1,0,0], strides = [2,2]> (images, v)
           [fc] p = MatMul (images, m) [fc_bias] c = Add (mb, p)
           [fc2] d = MatMul (images, m) }}"""
    )
    images = np.random.default_rng(1).integers(-16, 240, (1, 1, 4, 4)).astype(np.float32)
    low = insert_qdq(model, find_layers(model), Scales({"images": 1.0}, {"images": 112}))
    before, after = run(model, images), run(low, images)
    for name in "abcd":
        np.testing.assert_array_equal(after[name], before[name])
    # unshifted codes could not hold these images
    plain = insert_qdq(model, find_layers(model), Scales({"images": 1.0}))
    assert not np.array_equal(run(plain, images)["a"], before["a"])


def test_a_tensor_is_quantized_once_and_its_other_readers_keep_the_float() -> None:
    model = exported("sit")
    low, layers, _ = quantized(model, EVERYTHING)
    inputs = {name for layer in layers for name in layer.inputs}
    sources = Counter(node.input[0] for node in low.graph.node if node.op_type == "QuantizeLinear")
    assert sources == Counter(dict.fromkeys(inputs, 1))
    names = {layer.name for layer in layers}
    before = {node.name: list(node.input) for node in model.graph.node if node.name not in names}
    assert {node.name: list(node.input) for node in low.graph.node if node.name in before} == before


def test_two_layers_share_what_both_read() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,2,4,4] images) => (float[1,2,4,1] a, float[1,2,4,2] b, float[1,2,4,4] c, float[1,1,4,4] d, float[1,1,4,4] e)
        <float[4,1] v = {1,2,3,4}, float[4,2] w = {1,2,3,4,5,6,7,8}, float[1,2,1,1] k = {1,2}>
        { [relu] c = Relu (images) [fc] a = MatMul (c, v) [fc2] b = MatMul (c, w)
          [conv] d = Conv (c, k) [conv2] e = Conv (c, k) }"""
    )
    for shifts in ({}, {"c": 64}):
        low = insert_qdq(model, find_layers(model), Scales({"c": 1 / 64}, shifts))
        operators = Counter(node.op_type for node in low.graph.node)
        assert operators["QuantizeLinear"] == 1
        assert operators["DequantizeLinear"] == 1 + 4
        images = images_for(model, 1)[0]
        np.testing.assert_array_equal(run(low, images)["c"], np.maximum(images, 0))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 20])
def test_the_graph_is_deployable_as_it_is(opset: int) -> None:
    model = exported("sit", "batch", opset)
    low, _, _ = quantized(model, EVERYTHING, shifted=True)
    assert lint(low, max_opset=opset, dynamic_batch=True) == []
    assert low.graph.input == model.graph.input and low.graph.output == model.graph.output
    assert {node.name for node in model.graph.node} <= {node.name for node in low.graph.node}
    images = np.concatenate(images_for(model))
    before = run(model, images)["logits"]
    assert sqnr_db(run(low, images)["logits"], before) > 15
    assert sqnr_db(run(low, images, optimised=True)["logits"], before) > 15


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "precision"), [(17, "int8"), (20, "int8"), (20, "fp8")])
def test_fp16_holds_the_same_codes_and_scales(opset: int, precision: str) -> None:
    low, _, _ = quantized(exported("sit", 1, opset), EVERYTHING, precision, shifted=precision == "int8")
    half, _ = to_precision(low, "fp16")
    assert lint(half, max_opset=opset) == []
    before, after = constants(low), constants(half)
    compared = Counter()
    for node in half.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for name in node.input:
                if name in after:
                    original = before[name.removesuffix("/fp16")]
                    np.testing.assert_array_equal(after[name].astype(np.float64), original.astype(np.float64))
                    compared[after[name].dtype.name] += 1
    assert compared[GRIDS[precision].dtype.name] > 50
    assert compared["float16" if opset == 20 else "float32"] > 30
    added = [
        name
        for node in half.graph.node
        if node.op_type == "Add"
        for name in node.input
        if "/minus_shift" in name
    ]
    assert bool(added) == (precision == "int8")
    for name in added:
        assert after[name].dtype == np.float16
        np.testing.assert_array_equal(after[name].astype(np.float32), before[name.removesuffix("/fp16")])


def test_the_same_bytes_each_time() -> None:
    model = exported("sit")
    low, layers, scales = quantized(model, EVERYTHING, shifted=True)
    again = insert_qdq(model, {layer.name for layer in reversed(layers)}, scales)
    assert again.SerializeToString(deterministic=True) == low.SerializeToString(deterministic=True)
    assert model == exported("sit")


def test_codes_that_were_found_take_the_place_of_the_nearest() -> None:
    model = exported("sit")
    layers = find_layers(model)
    layer = layers["blocks.0/mlp/fc1"]
    scales = scales_of(model, [layer], images_for(model), shifted=True)
    shape = constants(model)[layer.weight].shape
    codes = np.random.default_rng(0).integers(-127, 128, shape, np.int8)
    low = insert_qdq(model, [layer.name], replace(scales, weights={layer.name: codes}))
    np.testing.assert_array_equal(constants(low)[f"{layer.weight}/codes"], codes)
    with pytest.raises(CalibrationError, match=r"codes of 'blocks.0/mlp/fc1' are"):
        insert_qdq(model, [layer.name], replace(scales, weights={layer.name: codes.T}))


def test_a_dead_layer_and_a_dead_channel() -> None:
    model = exported("sit")
    (weight,) = (t for t in model.graph.initializer if t.name == "blocks.1/mlp/fc2/weight")
    values = numpy_helper.to_array(weight).copy()
    values[:, 3:] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    low, _, _ = quantized(model)
    images = images_for(model)[0]
    assert sqnr_db(run(low, images)["logits"], run(model, images)["logits"]) > 15


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, None])
def test_unusable_scales_are_refused(scale: float | None) -> None:
    scales = Scales({} if scale is None else {"blocks.0/norm1": scale})
    with pytest.raises(CalibrationError, match=r"'blocks.0/norm1' has no usable scale"):
        insert_qdq(exported("sit"), ["blocks.0/attn/qkv"], scales)


@pytest.mark.parametrize(
    ("layers", "shifts", "precision", "opset", "message"),
    [
        (["nowhere"], {}, "int8", 20, "no layer 'nowhere'"),
        (["head"], {}, "int4", 20, "'int4' is not one of int8, fp8"),
        (["head"], {}, "fp8", 17, "fp8 needs operator set 19, and the graph declares 17"),
        (
            ["blocks.0/add"],
            {"embed/add": 64},
            "int8",
            20,
            "'blocks.0/add' has no weight that takes the shift",
        ),
    ],
)
def test_refusals(layers: list[str], shifts: dict, precision: str, opset: int, message: str) -> None:
    names = ("reshape", "embed/add", "blocks.0/attn/proj/bias")
    model = exported("sit")
    model.opset_import[0].version = opset
    with pytest.raises(CalibrationError, match=message) as raised:
        insert_qdq(model, layers, Scales(dict.fromkeys(names, 1.0), shifts), precision)
    assert "\n" not in str(raised.value)


def test_automatic_padding_is_not_shifted() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,1,4,4] images) => (float[1,1,4,4] y) <float[1,1,1,1] w = {1}>
        { [conv] y = Conv <auto_pad = "SAME_UPPER"> (images, w) }"""
    )
    with pytest.raises(CalibrationError, match="'conv' pads automatically"):
        insert_qdq(model, ["conv"], Scales({"images": 1.0}, {"images": 64}))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "targets"), [("int8", ("sm80", "sm120")), ("fp8", ("sm89", "sm120"))])
def test_the_real_builder_takes_it(tmp_path: Path, precision: str, targets: tuple[str, ...]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")
    from engines import BuildOptions, get

    model = exported("sit_nano")
    layers = find_layers(model)
    names = make_plan(layers, precision, ["default", "attention"], one_kernel=True).quantized
    activations, shifts = {}, {}
    for name in (tensor for layer in map(layers.__getitem__, names) for tensor in layer.inputs):
        if precision == "int8" and name.endswith("/act"):
            activations[name], shifts[name] = shifted_scale(-0.17, 4.0)
        else:
            activations[name] = float(float16_scale(4 / GRIDS[precision].largest))
    half, _ = to_precision(insert_qdq(model, names, Scales(activations, shifts), precision), "fp16")
    onnx.save(half, tmp_path / "model.onnx")
    options = BuildOptions(compute_capabilities=targets)
    info = get("tensorrt-rtx").build(tmp_path / "model.onnx", tmp_path / "engine.plan", options)
    # a QuantizeLinear and a constant for each layer at least, but for tensors that two layers read
    inputs = {layers[name].inputs for name in names}
    dtype = {"int8": "int8", "fp8": "float8_e4m3fn"}[precision]
    assert info.details["layer_output_types"][dtype] >= len(names) + len(inputs)
    # attention is one kernel wherever it is, and reads q, k and v in 8 bits where the plan says so
    census = info.details["kernels"]
    assert census["attention"] == census["attentions"] == census["attention_kernels"] == 8
    inside = {
        kernel["nodes"][0].split("/")[0]: kernel["reads"]
        for kernel in info.kernels
        if kernel["role"] == "attention"
    }
    low = {block for block, reads in inside.items() if sum(read.startswith(dtype) for read in reads) == 3}
    assert low == {name.split("/")[0] for name in names if layers[name].group == "attention"}
    assert len(low) == {"int8": 7, "fp8": 2}[precision]
