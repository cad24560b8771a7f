from __future__ import annotations

import onnx
import pytest

from calibration.errors import CalibrationError
from calibration.layers import find_layers
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.inspect import node_macs
from sit_deploy.models import CONFIGS
from tests.helpers.graphs import MODELS, exported
from tests.helpers.models import whole_model


def expected_groups(stage_blocks: tuple[int, ...], convolutions: int) -> dict[str, str]:
    """Return the group of every layer by name, in graph order, from what the architecture is."""
    groups = {f"stem/conv{i + 1}": "stem" for i in range(convolutions)}
    ends = [sum(stage_blocks[: i + 1]) - 1 for i in range(len(stage_blocks))]
    for i in range(sum(stage_blocks)):
        block = f"blocks.{i}"
        last = i == ends[-1]
        groups |= {f"{block}/attn/{part}": "qkv" for part in (("kv", "q") if last else ("qkv",))}
        groups |= {f"{block}/attn/{part}": "attention" for part in ("matmul", "matmul_2")}
        groups |= {f"{block}/attn/proj": "proj", f"{block}/add": "residual"}
        groups |= {f"{block}/mlp/fc1": "fc1", f"{block}/mlp/fc2": "fc2", f"{block}/add_2": "residual"}
        if i in ends[:-1]:
            tsm = f"tsm.{ends.index(i)}"
            groups |= {f"{tsm}/fc1": "tsm", f"{tsm}/fc2": "tsm", f"{tsm}/matmul": "aggregation"}
    return {**groups, "head": "head"}


def parse(body: str, constants: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[2,4] x) => (float[2,3] y) <{constants}> {{ {body} }}"""
    )


@pytest.mark.parametrize(
    ("name", "stage_blocks", "convolutions"),
    [
        pytest.param("sit_nano", CONFIGS["sit_nano"].stage_blocks, 4, marks=pytest.mark.slow),
        ("sit", (2, 1, 1, 2), 4),
        pytest.param("sit with dist token", (2, 1, 1, 2), 4, marks=pytest.mark.slow),
        ("vit", (2, 1, 1, 2), 1),
    ],
)
def test_every_layer_of_an_export_is_in_its_group(
    name: str, stage_blocks: tuple[int, ...], convolutions: int
) -> None:
    found = find_layers(exported(name))
    assert [(layer.name, layer.group) for layer in found.values()] == list(
        expected_groups(stage_blocks, convolutions).items()
    )


def test_queries_and_keys_of_attention() -> None:
    layers = find_layers(exported("sit"))
    products = {name: layer for name, layer in layers.items() if layer.group == "attention"}
    first, second = products.pop("blocks.0/attn/matmul"), products.pop("blocks.0/attn/matmul_2")
    assert first.attention == second.attention and first.attention[0] == first.attention[1] > 1
    assert (first.softmax, second.softmax) == (False, True)
    assert layers["blocks.5/attn/matmul"].attention[0] == 1  # the last block has one query
    assert layers["tsm.0/matmul"].softmax and layers["tsm.0/matmul"].attention is None
    others = [layer for layer in layers.values() if layer.group not in ("attention", "aggregation")]
    assert not any(layer.attention or layer.softmax for layer in others)


@pytest.mark.parametrize("name", MODELS)
def test_operands_of_an_export(name: str) -> None:
    graph = exported(name)
    nodes = {node.name: node for node in graph.graph.node}
    for layer in find_layers(graph).values():
        node, pair = nodes[layer.name], layer.group in ("attention", "aggregation", "residual")
        assert layer.op_type == node.op_type
        assert layer.operands == ((0, 1) if pair else (0,))
        assert layer.inputs == tuple(node.input[:2] if pair else node.input[:1])
        assert layer.weight == (None if pair else node.input[1])
        assert layer.channel_axis == (None if pair else {"Conv": 0, "MatMul": 1, "Gemm": 0}[node.op_type])


@pytest.mark.parametrize(("batch", "images"), [(1, 1), ("batch", 1), (3, 3)])
def test_macs_are_those_of_one_image(batch: int | str, images: int) -> None:
    graph = exported("sit", batch)
    outputs = {node.name: node.output[0] for node in graph.graph.node}
    layers = find_layers(graph)
    counted = {outputs[layer.name]: images * layer.macs for layer in layers.values() if layer.macs}
    assert counted == node_macs(graph)
    assert {layer.group for layer in layers.values() if not layer.macs} == {"residual"}


@pytest.mark.parametrize(("transposed", "shape", "axis"), [(0, "4,3", 1), (1, "3,4", 0)])
def test_gemm(transposed: int, shape: str, axis: int) -> None:
    graph = parse(
        f"[fc] y = Gemm <transB = {transposed}> (x, w)", f"float[{shape}] w = {{{', '.join('1' * 12)}}}"
    )
    (layer,) = find_layers(graph).values()
    assert (layer.group, layer.channel_axis, layer.weight, layer.macs) == ("linear", axis, "w", 12)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("[p] y = MatMul (w, v)", "float[2,4] w = {1,1,1,1,1,1,1,1}, float[4,3] v = {1,1,1,1,1,1,1,1,1,1,1,1}"),
        ("[p] h = MatMul (w, x) [r] y = Slice (h, s, e)", "float[2,2] w = {1,1,1,1}, int64[2] s = {0,0}, int64[2] e = {2,3}"),
        ("[p] y = Gemm <alpha = 2.0> (x, w)", f"float[4,3] w = {{{', '.join('1' * 12)}}}"),
        ("[p] y = Gemm <beta = 2.0> (x, w)", f"float[4,3] w = {{{', '.join('1' * 12)}}}"),
        ("[p] h = MatMul (x, w) [r] y = Reshape (h, s)", f"float[1,4,3] w = {{{', '.join('1' * 12)}}}, int64[2] s = {{2,3}}"),
        ("[p] h = MatMul (x, w) [r] y = Expand (h, s)", "float[4] w = {1,1,1,1}, int64[2] s = {2,2}"),
    ],
)  # fmt: skip
def test_other_products_are_no_layers(body: str, constants: str) -> None:
    assert find_layers(parse(body, constants)) == {}


@pytest.mark.parametrize("names", [("p", "p"), ("", "p")])
def test_names_that_do_not_tell_layers_apart(names: tuple[str, str]) -> None:
    graph = exported("sit")
    for node, name in zip((n for n in graph.graph.node if n.op_type == "MatMul"), names, strict=False):
        node.name = name
    with pytest.raises(CalibrationError, match=f"two nodes are called '{names[0]}'"):
        find_layers(graph)


def test_unknown_shapes() -> None:
    graph = exported("sit")
    graph.graph.node[1].domain, graph.graph.node[1].op_type = "nobody", "Strange"
    graph.opset_import.add(domain="nobody", version=1)
    del graph.graph.value_info[:]
    with pytest.raises(CalibrationError, match="the shapes of node 'stem/conv2' are not known"):
        find_layers(graph)


def test_layers_of_models_that_pytorch_writes_are_no_attention() -> None:
    """BEiT multiplies by the weights of its queries, keys and values in its attention, under no name of their own."""
    model = whole_model("BEiT")
    layers = find_layers(export_onnx(to_deploy_form(model), model.img_size))
    groups = {name: layer.group for name, layer in layers.items() if name.startswith("blocks.0/attn")}
    assert groups == {
        "blocks.0/attn/matmul": "linear",
        "blocks.0/attn/matmul_2": "attention",
        "blocks.0/attn/matmul_3": "attention",
        "blocks.0/attn/proj": "proj",
    }
    assert layers["blocks.0/attn/matmul_3"].softmax
