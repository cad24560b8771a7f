from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from calibration.collect import collect_observations
from calibration.errors import CalibrationError
from calibration.insert_qdq import insert_qdq
from calibration.layers import find_layers
from calibration.plan import make_plan
from calibration.smoothquant import SmoothingSite, find_smoothing_sites, smooth, smoothing_exponents
from tests.helpers.graphs import exported, images_for, run, scales_of, sqnr_db


def with_outliers(model: onnx.ModelProto, factor: float = 64) -> onnx.ModelProto:
    """Make three channels of every block's LayerNorms, and of its values, large, and what reads them as much smaller."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name: str, by: np.ndarray, axis: int) -> None:
        values = numpy_helper.to_array(constants[name])
        shape = [1] * values.ndim
        shape[axis] = -1
        constants[name].CopyFrom(numpy_helper.from_array(values * by.reshape(shape), name))

    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and node.name.startswith("blocks"):
            by = np.ones(constants[node.input[1]].dims[0], np.float32)
            by[[1, 5, 6]] = np.float32(factor)
            scale(node.input[1], by, 0)
            scale(node.input[2], by, 0)
            readers = ("fc1",) if node.name.endswith("norm2") else ("qkv", "kv", "q")
            block = node.name.split("/")[0]
            for name in (f"{block}/{part}/{reader}/weight" for part in ("attn", "mlp") for reader in readers):
                if name in constants:
                    scale(name, 1 / by, 0)
        elif node.name.endswith(("/qkv", "/kv")):
            channels, width = constants[node.input[1]].dims
            by = np.ones(width, np.float32)
            by[width - channels + np.array([2, 9])] = np.float32(factor)
            scale(node.input[1], by, 1)
            if f"{node.name}/bias/value" in constants:
                scale(f"{node.name}/bias/value", by, 0)
            scale(node.name.rpartition("/")[0] + "/proj/weight", 1 / by[-channels:], 0)
    return model


def smoothed(
    model: onnx.ModelProto, images: list[np.ndarray]
) -> tuple[onnx.ModelProto, dict[SmoothingSite, np.ndarray]]:
    places = find_smoothing_sites(model)
    seen = collect_observations(model, images, [], {place.tensor: -1 for place in places}).channels
    exponents = {place: smoothing_exponents(model, place, seen[place.tensor].absmax) for place in places}
    return smooth(model, exponents), exponents


def int8(model: onnx.ModelProto, images: list[np.ndarray]) -> onnx.ModelProto:
    layers = find_layers(model)
    names = make_plan(layers).quantized
    return insert_qdq(model, names, scales_of(model, [layers[name] for name in names], images))


@pytest.mark.parametrize("name", ["sit", "sit with dist token", "vit"])
def test_every_place_of_an_export_is_found(name: str) -> None:
    expected = []
    for i in range(6):
        attn = ("kv", "q") if i == 5 else ("qkv",)
        expected.append((f"blocks.{i}/norm1", {f"blocks.{i}/attn/{part}" for part in attn}))
        expected.append((f"blocks.{i}/norm2", {f"blocks.{i}/mlp/fc1"}))
        expected.append((f"blocks.{i}/attn/{attn[0]}", {f"blocks.{i}/attn/proj"}))
    expected += [(f"tsm.{i}/norm", {f"tsm.{i}/fc1"}) for i in range(3)]
    if "dist" not in name:  # there the head multiplies two tokens at once, side by side
        expected.append(("norm", {"head"}))
    found = [(place.source, set(place.readers)) for place in find_smoothing_sites(exported(name))]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_norms_written_out_are_smoothed_too() -> None:
    model = exported("vit of rms norms")
    places = {place.source: set(place.readers) for place in find_smoothing_sites(model)}
    assert places["blocks.2/norm1/mul"] == {"blocks.2/attn/qkv"}
    assert places["blocks.5/norm1/mul"] == {"blocks.5/attn/q", "blocks.5/attn/kv"}
    assert places["blocks.2/norm2/mul"] == {"blocks.2/mlp/fc1"}
    assert places["blocks.2/attn/mixed_norm/mul"] == {"blocks.2/attn/proj"}
    assert places["blocks.2/mlp/norm/mul"] == {"blocks.2/mlp/fc2"}
    assert places["norm/mul"] == {"head"}
    assert not any("query_norm" in source or "norm_pre" in source for source in places)
    images = images_for(model)
    moved, exponents = smoothed(model, images)
    assert any(power.any() for place, power in exponents.items() if place.source == "blocks.2/norm1/mul")
    for image in images:
        assert np.array_equal(run(moved, image)["logits"], run(model, image)["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit_nano", "sit with dist token", "vit"])
@pytest.mark.parametrize("optimised", [False, True])
def test_logits_are_the_same_bits(name: str, optimised: bool) -> None:
    model = with_outliers(exported(name))
    images = images_for(model, 2)
    after, exponents = smoothed(model, images)
    assert sum(np.count_nonzero(power) for power in exponents.values()) > 20 * 5
    assert any(power.max() >= 2 for power in exponents.values())
    for image in images_for(model, 3, seed=7):
        before = run(model, image, optimised=optimised)["logits"]
        np.testing.assert_array_equal(run(after, image, optimised=optimised)["logits"], before)
    assert [node.name for node in after.graph.node] == [node.name for node in model.graph.node]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "vit"])
def test_outliers_shrink_and_8_bits_gain(name: str) -> None:
    model = with_outliers(exported(name))
    images = images_for(model)
    after, exponents = smoothed(model, images)
    test = np.concatenate(images_for(model, 4, seed=5))
    test = [test[i : i + 1] for i in range(4)]
    logits = np.concatenate([run(model, image)["logits"] for image in test])
    plain, better = (
        sqnr_db(np.concatenate([run(int8(graph, images), image)["logits"] for image in test]), logits)
        for graph in (model, after)
    )
    assert better > plain + 6
    for place, power in exponents.items():
        peak = [
            np.abs(run(graph, test[0], [place.tensor])[place.tensor]).max((0, 1)) for graph in (model, after)
        ]
        np.testing.assert_array_equal(peak[1] * np.exp2(power), peak[0])
        if place.source.startswith("blocks"):
            assert peak[1].max() / np.median(peak[1]) < 0.5 * peak[0].max() / np.median(peak[0])


def test_factors_share_the_range() -> None:
    """√(max|x| / max|w|), over its geometric mean, as a power of two."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,5] x) => (float[1,2] y)
        <float[5] s = {1,1,1,1,1}, float[5] b = {0,0,0,0,0}, float[5,2] w = {1,-4, 0.25,0.5, 16,1, 0,0, 1,1}>
        { [norm] n = LayerNormalization (x, s, b) [fc] y = MatMul (n, w) }"""
    )
    (place,) = find_smoothing_sites(model)
    assert place == SmoothingSite("norm", "n", ("fc",))
    absmax = np.float32([64, 32, 1, 5, 0])
    # √(64/4), √(32/0.5), √(1/16): 2², 2³, 2⁻²; mean 1. A channel that is 0 on either side is left.
    assert smoothing_exponents(model, place, absmax).tolist() == [1, 2, -3, 0, 0]
    assert smoothing_exponents(model, place, absmax, strength=1).tolist() == [2, 1, -4, 0, 0]
    assert not smoothing_exponents(model, place, np.zeros(5, np.float32)).any()
    assert np.abs(smoothing_exponents(model, place, np.float32([1e-20, 1e20, 1, 1, 1]))).max() == 12
    with pytest.raises(CalibrationError, match=r"'n' has 5 channels, and \(4,\) were observed"):
        smoothing_exponents(model, place, absmax[:4])


def test_a_weight_that_is_transposed() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,3] x) => (float[1,2] y)
        <float[3] s = {1,8,1}, float[3] b = {0,3,0}, float[2,3] w = {1,2,3,4,5,6}>
        { [norm] n = LayerNormalization (x, s, b) [fc] y = Gemm <transB = 1> (n, w) }"""
    )
    (place,) = find_smoothing_sites(model)
    after = smooth(model, {place: np.array([-1, 3, 2])})
    x = np.float32([[1, -2, 4]])
    np.testing.assert_array_equal(run(after, x)["y"], run(model, x)["y"])
    np.testing.assert_allclose(run(after, x, ["n"])["n"] * [0.5, 8, 4], run(model, x, ["n"])["n"])


@pytest.mark.parametrize("kind", ["Relu", "Add", "output", "product", "second operand", "transposed", "conv"])
def test_a_norm_that_feeds_something_else_is_left_alone(kind: str) -> None:
    model = exported("sit")
    graph, tensor = model.graph, "blocks.1/norm2"
    assert tensor in {place.tensor for place in find_smoothing_sites(model)}
    shape = [1, 17, 32]
    if kind == "output":
        graph.output.append(helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, shape))
    else:
        nodes = {
            "Relu": [helper.make_node("Relu", [tensor], ["more"], "more")],
            "Add": [helper.make_node("Add", [tensor, tensor], ["more"], "more")],
            "product": [helper.make_node("MatMul", [tensor, "square"], ["more"], "more")],
            "second operand": [helper.make_node("MatMul", ["wide", tensor], ["more"], "more")],
            "transposed": [
                helper.make_node("Reshape", [tensor, "turned"], ["flat"], "flat"),
                helper.make_node("MatMul", ["flat", "tall"], ["more"], "more"),
            ],
            "conv": [
                helper.make_node("Unsqueeze", [tensor, "axis"], ["four"], "four"),
                helper.make_node("Conv", ["four", "kernel"], ["more"], "more"),
            ],
        }[kind]
        arrays = {
            "square": np.ones((1, 32, 32), np.float32),
            "wide": np.ones((3, 17), np.float32),
            "turned": np.array([1, 32, 17]),
            "tall": np.ones((17, 3), np.float32),
            "axis": np.array([0]),
            "kernel": np.ones((2, 1, 1, 1), np.float32),
        }
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
        graph.output.append(helper.make_empty_tensor_value_info("more"))
    assert tensor not in {place.tensor for place in find_smoothing_sites(model)}
    assert "blocks.0/norm2" in {place.tensor for place in find_smoothing_sites(model)}


@pytest.mark.parametrize(
    "where", ["split:2", "split:0", "transpose_2", "matmul_2", "transpose_4", "reshape_4", "qkv"]
)
def test_values_that_something_else_reads_are_left_alone(where: str) -> None:
    model = exported("sit")
    proj = [place for place in find_smoothing_sites(model) if place.source.endswith("attn/qkv")]
    assert len(proj) == 5
    model.graph.output.append(helper.make_empty_tensor_value_info(f"blocks.0/attn/{where}"))
    left = [place for place in find_smoothing_sites(model) if place.source.endswith("attn/qkv")]
    # the first of the parts that are split off are queries, which nothing changes
    assert left == (proj if where == "split:0" else proj[1:])


def test_heads_in_another_order_are_left_alone() -> None:
    model = exported("sit")
    (node,) = (node for node in model.graph.node if node.name == "blocks.0/attn/transpose_4")
    (perm,) = node.attribute
    perm.ints[:] = [0, 2, 3, 1]
    sources = [place.source for place in find_smoothing_sites(model)]
    assert "blocks.0/attn/qkv" not in sources and "blocks.1/attn/qkv" in sources


def test_a_norm_over_several_axes_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2,2] x) => (float[2,1] y) <float[2,2] s = {1,2,3,4}, float[2,2] b = {1,2,3,4}, float[2,1] w = {1,2}>
        { [norm] n = LayerNormalization <axis = 0> (x, s, b) [fc] y = MatMul (n, w) }"""
    )
    assert find_smoothing_sites(model) == ()
