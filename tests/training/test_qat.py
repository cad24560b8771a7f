"""Quantization-aware training: it rounds as ONNX Runtime does, and where the deployed graph does."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.graph import export
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.models.slim import slim
from tests.helpers.models import (
    EVA_VARIANTS,
    VIT_PARTS,
    images,
    plain_vit,
    randomise,
    tiny_eva,
    tiny_model,
    tiny_vit,
    whole_model,
)
from tests.helpers.rounding import MODELS, named_as_nodes, plain_thresholds, rounded_deploy_form
from training import qat

# -------------------------------------------------------------------------------------------------------- the rounding


def runtime_rounding(x: np.ndarray, scale: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return what ONNX Runtime makes of x between QuantizeLinear and DequantizeLinear."""
    import onnxruntime

    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **attributes),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in ("x", "y")]
    constants = [
        onnx.numpy_helper.from_array(scale, "scale"),
        onnx.numpy_helper.from_array(np.zeros(scale.shape, np.int8), "zero"),
    ]
    graph = helper.make_graph(nodes, "rounding", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_inputs_round_as_onnx_runtime_does() -> None:
    """Half to even, and one more code below zero than above."""
    x = torch.cat((torch.arange(-300, 300) / 4.0, 40 * torch.randn(1000), torch.tensor([1e9, -1e9])))
    ours = qat.quantize_input(x, torch.tensor(63.5))
    theirs = runtime_rounding(x.numpy(), np.float32(63.5) / np.array(127, np.float32))
    assert torch.equal(ours, torch.from_numpy(theirs))
    assert (ours.min(), ours.max()) == (-64, 63.5)
    assert qat.quantize_input(torch.tensor([0.25, 0.75, -0.25]), torch.tensor(63.5)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("shape", [(5, 40), (5, 3, 3, 3)])
def test_weights_round_by_output_channel(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * torch.tensor([1e-3, 1, 40, 1, 1]).view(-1, *[1] * (len(shape) - 1))
    weight[3] = 0  # a dead channel stays what it is
    ours = qat.quantize_weight(weight)
    largest = weight.flatten(1).abs().amax(1).numpy()
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    assert torch.equal(ours, torch.from_numpy(runtime_rounding(weight.numpy(), scale, 0)))
    codes = ours.flatten(1) / torch.from_numpy(scale)[:, None]
    assert codes.abs().amax(1).round().tolist() == [127, 127, 127, 0, 127]
    assert 20 < len(codes[1].round().unique()) <= 40


def test_gradients_pass_the_rounding_and_stop_at_the_clipping() -> None:
    x = torch.tensor([0.3, -64.0, -64.3, 63.5, 63.7, 63.8, -500.0], requires_grad=True)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    (qat.quantize_input(x, torch.tensor(63.5)) * weights).sum().backward()
    assert x.grad.tolist() == [1, 2, 0, 4, 5, 0, 0]  # codes -128.6 and 127.6 are off the grid, 127.4 is not
    weight = torch.randn(4, 6, requires_grad=True)
    qat.quantize_weight(weight).square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * qat.quantize_weight(weight).detach())


def test_batchnorm_keeps_its_statistics_and_learns_the_rest() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.patch_embed.bn2)
    qat.quantize(model, {})
    model.train()
    x = torch.randn(4, 8, 5, 5)
    model.patch_embed.bn2(x).square().mean().backward()
    after = model.patch_embed.bn2
    assert model.training and torch.equal(after.running_mean, before.running_mean)
    assert torch.equal(after(x), before(x))
    assert after.weight.grad.abs().min() > 0


# --------------------------------------------------------------------------------------------- where the graph rounds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SiT", "timm", "gate in a layer of its own"])
def test_the_layers_are_the_nodes_with_weights_of_the_exported_graph(kind: str) -> None:
    if kind in VIT_PARTS:
        model = randomise(slim(plain_vit(depth=3, **VIT_PARTS[kind]), (2, 1))).eval()
    else:
        model = (tiny_model if kind == "SiT" else tiny_vit)(stage_blocks=(2, 1))
    graph = export.export_onnx(to_deploy_form(model), model.img_size).graph
    weights = {t.name for t in graph.initializer}
    kinds = ("MatMul", "Gemm", "Conv")
    wanted = [n.name for n in graph.node if n.op_type in kinds and n.input[1] in weights]
    # two layers of a gated MLP are one node
    ours = {node for nodes in qat.deployed_layers(model).values() for node in nodes}
    assert sorted(ours) == sorted(wanted)
    assert len(ours) > 15 and all(
        isinstance(model.get_submodule(p), nn.Module) for p in qat.deployed_layers(model)
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_are_those_of_the_deploy_form(name: str) -> None:
    """All but the head of a model with a dist token, which is another Linear there."""
    model = MODELS[name]()
    layers = qat.deployed_layers(model)
    nodes = {node for names in layers.values() for node in names}
    assert named_as_nodes(to_deploy_form(model)).keys() - nodes == ({"head"} if "dist" in name else set())
    for path, names in layers.items():
        assert isinstance(model.get_submodule(path), (nn.Linear, nn.Conv2d)), names


@torch.no_grad()
def with_exact_folds(model: nn.Module) -> nn.Module:
    """Return the model in float64, with gains that are powers of two, negative ones among them, so that no fold rounds.

    Else a few codes differ by rounding errors of the folds, and every one of them moves all that comes after it.
    """

    def coarse(tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.round(tensor * 1024) / 1024)

    def powers(tensor: Tensor) -> None:
        count = tensor.numel()
        values = 2.0 ** (torch.arange(count) % 3 - 1) * (-1.0) ** (torch.arange(count) % 2)
        tensor.copy_(values.view_as(tensor))

    model = model.double()
    for name, tensor in model.named_parameters():
        if name.endswith(("_token", "pos_embed", "bias")):
            coarse(tensor)
        if name.endswith(("gamma", "scale")):
            powers(tensor)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            powers(module.weight)
            coarse(module.running_mean)
            module.running_var.fill_(4 - module.eps)
    for block in model.blocks:  # 1 / 4, and not the square root of 8
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 2, 16, 0.25
    return model


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_computes_what_the_quantized_deploy_form_does(name: str) -> None:
    model = with_exact_folds(MODELS[name]())
    x = images(model, 3).double()
    form = to_deploy_form(model, keep_value_bias=True)
    thresholds = {node: 0.8 * limit for node, limit in plain_thresholds(form, x.float()).items()}
    if model.has_dist_token:
        del thresholds["head"]
    in_float = model(x)
    wanted = rounded_deploy_form(model, thresholds)(x)
    assert (wanted - in_float).abs().mean() > 1e-3 * in_float.std()
    qat.quantize(model, thresholds)
    ours = model.train().eval()(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
    with qat.in_float(model):
        assert torch.equal(model(x), in_float)
    assert torch.equal(model(x), ours)


# --------------------------------------------------------------------------------------------------------- what is bad


def test_patterns_of_layers_to_skip() -> None:
    layers = qat.quantized_layers(tiny_model(), ("stem/*", "head", "blocks.5/attn/*"))
    nodes = {node for names in layers.values() for node in names}
    assert nodes == {
        node
        for names in qat.deployed_layers(tiny_model()).values()
        for node in names
        if not node.startswith(("stem", "head", "blocks.5/attn"))
    }
    qat.quantized_layers(tiny_model(dist_token=True), ("head",))  # it is left out already
    model = tiny_model()
    qat.quantize(model, {}, ("stem/*",))
    assert type(model.patch_embed.conv1) is nn.Conv2d
    assert qat.thresholds_of(model).keys() == nodes | {"head"} | {
        f"blocks.5/attn/{part}" for part in ("q", "kv", "proj")
    }


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (("blocks.1/attn/qvk",), "no quantized layer is called 'blocks.1/attn/qvk'; did you mean 'blocks.1/attn/qkv'?"),
        (("rtsm.*",), "no quantized layer is called 'rtsm.*'"),
        (("blocks.5/attn/q",), "blocks.5/attn/q and blocks.5/attn/kv are one layer in training; skip both or none"),
        (("*",), "--qat has no layer left to quantize; skip fewer of them"),
    ],
)  # fmt: skip
def test_patterns_that_make_no_sense(skip: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        qat.quantized_layers(tiny_model(reverse_tsm=True), skip)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["EVA-02", "BEiT", "parallel blocks"])
def test_models_that_do_not_round_where_their_graph_does_are_refused(kind: str) -> None:
    if kind == "parallel blocks":
        model = slim(plain_vit(**VIT_PARTS[kind]), (6,))
    else:
        model = tiny_eva(kind) if kind in EVA_VARIANTS else whole_model(kind)
    with pytest.raises(
        InputError, match=r"--qat does not know the layers of a \w+; train it in float, and build it"
    ):
        qat.quantized_layers(model)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_must_be_a_positive_number(limit: float) -> None:
    with pytest.raises(
        InputError, match=r"the input of tsm\.0/fc1 has no range to quantize \(threshold .*skip it"
    ):
        qat.quantize(tiny_model(), {"tsm.0/fc1": limit})
