"""One scale for a weight whose product is split; that TensorRT-RTX's real builder multiplies it in 8 bits then is in the tests of builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.attention import Attention, Columns, find_attentions
from calibration.insert_qdq import insert_qdq
from calibration.layers import find_layers
from calibration.plan import make_plan
from calibration.read_qdq import read_layers
from calibration.split_scales import balance_queries_and_keys, share_split_scales, split_weight_scales
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import to_precision
from tests.helpers.graphs import exported, images_for, prepared, run, scales_of
from tests.helpers.models import tiny_vit


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantized(name: str, precision: str = "int8", opset: int = 20) -> onnx.ModelProto:
    model, names, scales = prepared(name, precision, opset, shifted=precision == "int8", groups=None)
    return insert_qdq(model, names, scales, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "opset"), [("sit", "int8", 17), ("vit", "int8", 20), ("sit", "fp8", 20)]
)
def test_the_same_codes_and_the_same_result(name: str, precision: str, opset: int) -> None:
    low = quantized(name, precision, opset)
    before = low.SerializeToString()
    shared = share_split_scales(low)
    assert low.SerializeToString() == before  # it is a copy
    assert read_layers(shared) == read_layers(low)
    assert lint(shared, max_opset=opset) == []
    nodes = {node.name: node for node in shared.graph.node}
    old, new = constants(low), constants(shared)
    split = [
        node for node in low.graph.node if node.op_type == "MatMul" and node.name.endswith(("/qkv", "/kv"))
    ]
    assert [n for n in nodes if n.endswith("/rescale")] == [f"{node.name}/rescale" for node in split] != []
    for node in split:
        weight = nodes[f"{node.name}/weight/dequantize"]
        codes, scale, zero = (new[tensor] for tensor in weight.input)
        assert scale.shape == zero.shape == () and np.log2(scale) == np.round(np.log2(scale))
        np.testing.assert_array_equal(codes, old[f"{node.name}/weight/codes"])
        ratio = new[nodes[f"{node.name}/rescale"].input[1]]
        np.testing.assert_array_equal(ratio * scale, old[f"{node.name}/weight/scale"])
        assert 1 <= ratio.max() < 2
        # FP16 holds the ratio as it holds the scale
        np.testing.assert_array_equal(ratio.astype(np.float16).astype(np.float32), ratio)
    for image in images_for(low, 2, seed=4):
        expected = run(low, image)["logits"]
        np.testing.assert_allclose(run(shared, image)["logits"], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_fp16_beside_it() -> None:
    half, _ = to_precision(share_split_scales(quantized("vit")), "fp16")
    assert lint(half) == []
    ratios = [value for name, value in constants(half).items() if "/ratio" in name]
    assert ratios and {value.dtype for value in ratios} == {np.dtype(np.float16)}


def attention_ranges(model: onnx.ModelProto, attention: Attention) -> list[np.ndarray]:
    values = constants(model)
    nodes = {node.name: node for node in model.graph.node}
    return [
        np.abs(values[nodes[part.layer].input[1]][:, part.slice]).max(axis=0)
        for part in (attention.queries, attention.keys)
    ]


def of_one_product(model: onnx.ModelProto) -> tuple[list[Attention], Attention]:
    """Return the attentions of all blocks but the last, whose one query has a product of its own, and that."""
    *others, last = find_attentions(model)
    return others, last


def outliers(name: str) -> onnx.ModelProto:
    """A model whose queries, keys and values have channels that are far apart."""
    model = exported(name)
    random = np.random.default_rng(3)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    parts = (part.layer for a in find_attentions(model) for part in (a.queries, a.keys, a.values))
    for layer in dict.fromkeys(parts):
        tensor = tensors[nodes[layer].input[1]]
        weight = numpy_helper.to_array(tensor)
        spread = np.exp(0.7 * random.standard_normal(weight.shape[1])).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(weight * spread, tensor.name))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "vit"])
def test_queries_and_keys_share_the_smallest_scale_and_the_logits_stay(name: str) -> None:
    model = outliers(name)
    before = model.SerializeToString()
    layers = find_layers(model)
    balanced = balance_queries_and_keys(model, layers.keys() - {n for n in layers if "/matmul" in n})
    assert model.SerializeToString() == before
    found, last = of_one_product(balanced)
    assert len(found) > 1
    for was, now in zip(attention_ranges(model, last), attention_ranges(balanced, last), strict=True):
        np.testing.assert_array_equal(was, now)
    for attention in found:
        was, (queries, keys) = attention_ranges(model, attention), attention_ranges(balanced, attention)
        assert np.ptp(np.log(was[0] / was[1])) > 1 and lint(balanced) == []
        smallest = np.sqrt(was[0] * was[1]).max()  # no factors make the largest weight smaller
        assert max(queries.max(), keys.max()) <= smallest * (1 + 1e-6) < 0.9 * np.max(was)
        np.testing.assert_allclose(queries * keys, was[0] * was[1], rtol=1e-6)
    for image in images_for(model, 2, seed=4):
        expected = run(model, image)["logits"]
        np.testing.assert_allclose(run(balanced, image)["logits"], expected, atol=2e-5 * expected.std())


def with_channels(model: onnx.ModelProto, part: Columns, weight: float, bias: float | None = None) -> None:
    """Multiply the weights of two channels of some by a number, and give these a bias, in place."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    channels = [part.start, part.start + 5]
    tensor = tensors[nodes[part.layer].input[1]]
    values = numpy_helper.to_array(tensor).copy()
    values[:, channels] *= weight
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    if bias is not None:
        assert part.bias is not None
        tensor = tensors[nodes[part.bias].input[1]]
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[[0, 5]] = bias
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.slow
def test_biases_that_are_one_constant() -> None:
    """Equal constants are shared, as the biases of a model that was never trained are."""
    model = outliers("vit")
    nodes, found = {node.name: node for node in model.graph.node}, list(find_attentions(model))
    shared = nodes[found[0].queries.bias].input[1]
    for attention in found:
        nodes[attention.queries.bias].input[1] = shared
    balanced = balance_queries_and_keys(model, [a.values.layer for a in found])
    (image,) = images_for(model, 1, seed=4)
    expected = run(model, image)["logits"]
    np.testing.assert_allclose(run(balanced, image)["logits"], expected, atol=2e-5 * expected.std())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_channels_of_zeros_say_nothing_of_the_scale(precision: str) -> None:
    model = exported("vit")
    first, *_ = find_attentions(model)
    name = first.values.layer
    plain = split_weight_scales(model, [name], precision)[name]
    for part in (first.queries, first.values):
        with_channels(model, part, 0)
    scale = split_weight_scales(model, [name], precision)[name]
    (largest,) = set(scale[first.queries.slice]) | set(scale[first.keys.slice])
    assert largest <= plain[first.queries.start]  # where a scale of nothing is 1
    for part in (first.queries, first.keys, first.values):
        with_channels(model, part, 0)
    weight = next(t for t in model.graph.initializer if t.name.endswith("blocks.0/attn/qkv/weight"))
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), weight.name))
    assert split_weight_scales(model, [name], precision) == {}


@pytest.mark.slow
def test_queries_and_keys_of_zeros() -> None:
    model = exported("vit")
    first, *_ = find_attentions(model)
    name = first.values.layer
    (weight,) = [t for t in model.graph.initializer if t.name.endswith("blocks.0/attn/qkv/weight")]
    values = numpy_helper.to_array(weight).copy()
    for least in (0.0, 1e-9):
        values[:, : first.values.start] = least
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        scale = split_weight_scales(balance_queries_and_keys(model, [name]), [name], "int8")[name]
        own = np.abs(values[:, first.values.slice]).max(axis=0) / 127
        assert np.all((own <= scale[first.values.slice]) & (scale[first.values.slice] < 1.01 * own))


@pytest.mark.slow
def test_keys_of_queries_that_are_all_bias_are_not_rounded_away() -> None:
    model = exported("vit")
    attentions, _ = of_one_product(model)
    names = [attention.values.layer for attention in attentions]
    for attention in attentions:
        with_channels(model, attention.queries, 1e-8, bias=1.5)
    balanced = balance_queries_and_keys(model, names)
    scales = scales_of(balanced, [find_layers(balanced)[n] for n in names], images_for(model), "int8", True)
    low = insert_qdq(
        balanced, names, replace(scales, channels=split_weight_scales(balanced, names, "int8")), "int8"
    )
    plain = insert_qdq(model, names, scales, "int8")
    first, noise = attentions[0].merged, dict.fromkeys(("low", "plain"), 0.0)
    for image in images_for(model, 3, seed=4):
        expected = run(model, image, [first])[first]
        for name, graph in (("low", low), ("plain", plain)):
            noise[name] += float(np.square(run(graph, image, [first])[first] - expected).sum())
    assert noise["low"] < 2 * noise["plain"]


@pytest.mark.slow
def test_operands_whose_scales_were_observed_stay() -> None:
    model = outliers("sit")
    everything = find_layers(model).keys()
    assert balance_queries_and_keys(model, everything) == balance_queries_and_keys(model, ()) == model
    assert split_weight_scales(model, everything, "int8") == {} == split_weight_scales(model, (), "fp8")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("sit", "int8"), ("vit", "int8"), ("vit", "fp8")])
def test_nothing_stands_between_the_product_and_attention(name: str, precision: str) -> None:
    model = outliers(name)
    names = make_plan(find_layers(model), precision, None).quantized
    if precision == "int8":
        model = balance_queries_and_keys(model, names)
    layers = find_layers(model)
    scales = scales_of(model, [layers[n] for n in names], images_for(model), precision, precision == "int8")
    plain = insert_qdq(model, names, scales, precision)
    own = split_weight_scales(model, names, precision)
    low = insert_qdq(model, names, replace(scales, channels=own), precision)
    shared = share_split_scales(low, model)
    assert lint(shared) == [] and own.keys() == {a.values.layer for a in of_one_product(model)[0]}
    nodes, values = {node.name: node for node in shared.graph.node}, constants(shared)
    for attention in of_one_product(model)[0]:
        layer = attention.values.layer
        codes, scale, zero = (values[t] for t in nodes[f"{layer}/weight/dequantize"].input)
        assert (
            scale.shape == zero.shape == ()
            and codes.dtype == values[nodes[f"{layer}/weight/dequantize"].input[2]].dtype
        )
        readers = [node.op_type for node in shared.graph.node if nodes[layer].output[0] in node.input]
        assert readers == ["Split"]
        rescale = nodes.get(f"{layer}/rescale")
        assert (rescale is None) == (precision == "fp8")
        if rescale is not None:
            assert list(rescale.output) == [attention.merged]
            ratio = values[rescale.input[1]]
            np.testing.assert_array_equal(ratio, ratio.astype(np.float16))
            np.testing.assert_array_equal(ratio * scale, own[layer][attention.values.slice])
    first, noise = next(iter(find_attentions(model))).merged, dict.fromkeys(("plain", "shared"), 0.0)
    for image in images_for(model, 3, seed=4):
        # the same codes; later, sums are rounded elsewhere and now and then a code comes out another
        found, wide = (run(graph, image, [first])[first] for graph in (shared, low))
        np.testing.assert_allclose(found, wide, rtol=1e-5, atol=1e-5 * np.abs(wide).max())
        expected = run(model, image)["logits"]
        for name, graph in (("shared", shared), ("plain", plain)):
            noise[name] += float(np.square(run(graph, image)["logits"] - expected).sum())
    assert (
        noise["shared"] < 4 * noise["plain"]
    )  # of three images and weights rounded to nearest: it varies by 3 dB


@pytest.mark.slow
def test_values_with_a_bias_get_their_scales_before_it() -> None:
    """As in a model that was trained in 8 bits; behind attention, their scales would be those of the bias too."""
    model = export_onnx(to_deploy_form(tiny_vit("plain"), keep_value_bias=True), (64, 64))
    first, *_ = find_attentions(model)
    name = first.values.layer
    assert first.values.bias is not None
    (weight,) = [t for t in model.graph.initializer if t.name.endswith("blocks.0/attn/qkv/weight")]
    values = numpy_helper.to_array(weight).copy()
    values[:, : first.values.start] = np.where(values[:, : first.values.start] > 0, 0.2, -0.2)  # one scale
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    scales = scales_of(model, [find_layers(model)[name]], images_for(model), "int8", False)
    low = insert_qdq(model, [name], scales, "int8")
    shared = share_split_scales(low, model)
    assert shared is not low
    image = images_for(model, 1, seed=4)[0]
    expected, found = (run(graph, image, [first.merged])[first.merged] for graph in (low, shared))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


GRAPH = """<ir_version: 10, opset_import: ["": 20]>
g (float[1,2] x) => ({outputs})
<int8[2,2] c = {{1,2,3,4}}, float[2] s = {{0.5,0.75}}, int8[2] z = {{0,0}}, float one = {{1.0}}, int8 o = {{0}}, float[2] b = {{1,2}}>
{{ q = QuantizeLinear (x, one, o) d = DequantizeLinear (q, one, o) w = DequantizeLinear <axis = 1> (c, s, z) {nodes} }}"""
HALVES = "float[1,1] l, float[1,1] r"


def graph(nodes: str, outputs: str = HALVES) -> onnx.ModelProto:
    return onnx.parser.parse_model(GRAPH.format(nodes=nodes, outputs=outputs))


@pytest.mark.parametrize(
    "nodes",
    [
        "[fc] p = MatMul (d, w) [part] l, r = Split <axis = 1, num_outputs = 2> (p)",
        "[fc] p = MatMul (d, w) [bias] t = Add (p, b) [part] l, r = Split <axis = 1, num_outputs = 2> (t)",
    ],
)
def test_a_product_that_is_split(nodes: str) -> None:
    model = graph(nodes)
    shared = share_split_scales(model)
    x = np.float32([[3, -5]])
    before, after = run(model, x), run(shared, x)
    assert {name: value.tolist() for name, value in before.items()} == {
        name: value.tolist() for name, value in after.items()
    }
    assert [node.name for node in shared.graph.node if node.op_type == "Mul"] == ["fc/rescale"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("[fc] y = MatMul (d, w)", "float[1,2] y"),
        ("[fc] p = MatMul (d, w) y = Relu (p)", "float[1,2] y"),
        # its whole result is read as well
        ("[fc] p = MatMul (d, w) y = Relu (p) l, r = Split <axis = 1, num_outputs = 2> (p)", f"float[1,2] y, {HALVES}"),
        ("[fc] p = MatMul (d, w) l, r = Split <axis = 1, num_outputs = 2> (p)", f"float[1,2] p, {HALVES}"),
        # not in 8 bits, and with one scale already
        ("v = Relu (w) [fc] p = MatMul (d, v) l, r = Split <axis = 1, num_outputs = 2> (p)", HALVES),
        ("v = DequantizeLinear (c, one, o) [fc] p = MatMul (d, v) l, r = Split <axis = 1, num_outputs = 2> (p)", HALVES),
    ],
)  # fmt: skip
def test_others_are_left_alone(nodes: str, outputs: str) -> None:
    model = graph(nodes, outputs)
    assert share_split_scales(model) is model


def test_a_weight_that_two_products_read() -> None:
    halves = "<axis = 1, num_outputs = 2>"
    model = graph(
        f"[one] p = MatMul (d, w) l, r = Split {halves} (p) [two] y = MatMul (d, w)",
        f"float[1,2] y, {HALVES}",
    )
    assert share_split_scales(model) is model


def test_dead_channels(values: Sequence[float] = (2.0**-24, 1.0)) -> None:
    """The least scale that there is beside one of weights."""
    model = graph("[fc] p = MatMul (d, w) l, r = Split <axis = 1, num_outputs = 2> (p)")
    (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == "s"]
    scale.CopyFrom(numpy_helper.from_array(np.float32(values), "s"))
    x = np.float32([[1, 1]])
    after = run(share_split_scales(model), x)
    assert float(after["l"][0, 0]) == 4 * 2.0**-24 and float(after["r"][0, 0]) == 6


def test_a_channel_of_zeros_does_not_widen_the_result() -> None:
    """Its scale of 1 beside those of weights would make a product that float16 does not hold."""
    nodes = "[fc] p = MatMul (d, w) l, r = Split <axis = 1, num_outputs = 2> (p)"
    model = graph(nodes)
    for tensor in model.graph.initializer:
        if tensor.name == "c":
            tensor.CopyFrom(numpy_helper.from_array(np.int8([[0, 2], [0, 4]]), "c"))
        if tensor.name == "s":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([1, 2.0**-10]), "s"))
    shared = share_split_scales(model)
    assert not [node.name for node in shared.graph.node if node.op_type == "Mul"]
    x = np.float32([[1, 1]])
    before, after = run(model, x), run(shared, x)
    assert (
        float(after["l"][0, 0]) == 0 and float(before["r"][0, 0]) == float(after["r"][0, 0]) == 6 * 2.0**-10
    )
