"""Quantization-aware training: rounds as ONNX Runtime does, where the deployed graph does, and leaves a plain checkpoint."""

from __future__ import annotations

import copy
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from calibration import thresholds as methods
from sit_deploy.data.datasets import ArrayImages, Data
from sit_deploy.errors import InputError
from sit_deploy.graph import export
from sit_deploy.graph.deploy_form import DeployForm, to_deploy_form
from sit_deploy.models import load_model, read_card
from sit_deploy.models.card_file import save_weights
from sit_deploy.models.slim import slim
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from tests.helpers.models import (
    EVA_VARIANTS,
    VIT_PARTS,
    VIT_VARIANTS,
    images,
    plain_vit,
    randomise,
    tiny_eva,
    tiny_model,
    tiny_vit,
    vit_of,
    whole_model,
)
from tests.helpers.train import PLAIN, RICH, assert_same_run, log_rows, read_parts, start, start_world, words
from training import Summary, TrainRequest, qat, qat_calibration, train
from training.loop import StoppedError
from training.metrics import evaluate
from training.qat_calibration import choose_images
from training.recipes import DIGITS_STUDENT, STUDENTS, recipe_for
from training.reporter import Silent
from training.sample_reader import SampleReader
from training.set_up import set_up

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")

HERE = World(0, 1, torch.device("cpu"))
MODELS: dict[str, Callable[[], Any]] = {
    "SiT": tiny_model,
    "SiT, 6c": lambda: tiny_model(stem="6c"),
    "teacher": lambda: tiny_model(stage_blocks=(4,)),
    "dist token": lambda: tiny_model(dist_token=True),
    "slimmed ViT with dist token": lambda: tiny_vit(dist_token=True),
    "RMS norms": lambda: vit_of("RMS norms", (2, 1, 1, 2)),
    **{name: lambda name=name: tiny_vit(name) for name in VIT_VARIANTS},
}


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


def named_as_nodes(form: DeployForm) -> dict[str, nn.Module]:
    """Return the Linear and Conv modules of a deploy form under the names that their nodes get."""
    found = {n: m for n, m in form.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    return {re.sub(r"\.(?!\d)", "/", name): module for name, module in found.items()}


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


def plain_thresholds(form: DeployForm, x: Tensor) -> dict[str, float]:
    """Return node name → largest |x| of its input; q and kv of the last block share one, which is that of kv."""
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: found.__setitem__(name, float(inputs[0].abs().max()))
        )
        for name, module in named_as_nodes(form).items()
    ]
    with torch.no_grad():
        form(x)
    for hook in hooks:
        hook.remove()
    return {name: found.get(re.sub("/q$", "/kv", name), limit) for name, limit in found.items()}


@torch.no_grad()
def rounded_deploy_form(model: nn.Module, thresholds: dict[str, float]) -> DeployForm:
    """Return the deploy form in float64 with ONNX's arithmetic, in NumPy, at each node that has a threshold."""
    form = to_deploy_form(model, keep_value_bias=True).double()

    def round_input(limit: float, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        scale = np.float32(limit) / np.float32(127)
        return torch.from_numpy(np.clip(np.rint(inputs[0].numpy() / scale), -128, 127) * scale)

    for name, module in named_as_nodes(form).items():
        if name in thresholds:
            rows = module.weight.numpy().reshape(len(module.weight), -1)
            scale = np.abs(rows).max(1, keepdims=True) / 127
            codes = np.clip(np.rint(rows / scale), -127, 127)
            module.weight.copy_(torch.from_numpy(codes * scale).view_as(module.weight))
            module.register_forward_pre_hook(
                lambda module, inputs, limit=thresholds[name]: round_input(limit, module, inputs)
            )
    return form


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


# --------------------------------------------------------------------------------------------------------- calibration


def noise(count: int = 12, size: int = 64) -> Data:
    """Return pictures of noise, in three classes, to train on; none are held out."""
    draw = np.random.default_rng(0)
    pixels = ArrayImages(draw.integers(0, 256, (count, size, size), np.uint8), np.arange(count) % 3)
    return Data("noise", pixels, ArrayImages(pixels.pixels[:0], pixels.labels[:0]), None, 3)


def observed(
    model: nn.Module, data: Data, images: int, world: World = HERE, **options: Any
) -> dict[str, float]:
    return qat_calibration.calibrate(
        model,
        SampleReader(data.train, 0),
        choose_images(data, images, 0),
        Preprocessing.for_model(64),
        world,
        **options,
    )


@pytest.mark.parametrize("name", ["SiT", "dist token", "plain", "average with registers", "RMS norms"])
def test_it_observes_what_the_deployed_layers_see(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest values, image by image and over all of them; of the class token alone where that is all there is."""
    model, data = MODELS[name](), noise(6)
    monkeypatch.setattr(qat_calibration, "METHOD", "minmax")
    ours = observed(model.train(), data, 6)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
    prepare = Preprocessing.for_model(64)
    batch = torch.stack([torch.from_numpy(prepare(data.train[i][0])) for i in range(6)])
    wanted = plain_thresholds(to_deploy_form(model, keep_value_bias=True), batch)
    if model.has_dist_token:
        del wanted["head"]
    assert ours.keys() == wanted.keys()
    assert ours == pytest.approx(wanted, rel=1.1e-3)  # scales are float16 numbers, rounded up
    assert all(np.float16(limit / 127) == np.float32(limit / 127) for limit in ours.values())
    few = observed(model, data, 2)
    assert all(few[node] <= ours[node] for node in ours) and few != ours


def test_thresholds_are_those_of_least_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        qat_calibration, "threshold", lambda *args: seen.append(args[1:]) or methods.threshold(*args)
    )
    found = observed(tiny_model(), noise(), 4)
    assert set(seen) == {("mse", "int8")}
    monkeypatch.setattr(qat_calibration, "METHOD", "minmax")
    widest = observed(tiny_model(), noise(), 4)
    assert all(found[node] <= widest[node] for node in widest)
    assert sum(found[node] < 0.995 * widest[node] for node in widest) > 15


@pytest.mark.slow
def test_shares_of_processes_add_up_to_what_one_sees() -> None:
    """Two processes in turn: what one has observed is kept for the other."""

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            shares[self.rank] = value
            return [shares[rank] for rank in sorted(shares)]

    model, data = tiny_model(), noise(9)
    shares: dict[int, Any] = {}
    first = observed(model, data, 5, Two(0, 2, HERE.device))
    both = observed(model, data, 5, Two(1, 2, HERE.device))
    assert both == observed(model, data, 5) != first
    assert [shares[rank]["head"].images for rank in (0, 1)] == [3, 2]


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


def test_activations_that_are_dead_or_not_finite_are_named() -> None:
    model = tiny_model()
    nn.init.zeros_(model.blocks[1].mlp.fc1.weight)
    nn.init.zeros_(model.blocks[1].mlp.fc1.bias)
    thresholds = observed(model, noise(), 2)
    with pytest.raises(InputError, match=r"the input of blocks\.1/mlp/fc2 has no range"):
        qat.quantize(model, thresholds)
    nn.init.constant_(model.blocks[3].mlp.fc1.bias, 3e38)
    nn.init.constant_(model.blocks[3].mlp.fc2.weight, 3e38)
    with pytest.raises(InputError, match=r"the input of blocks\.3/mlp/fc2 is not finite"):
        observed(model, noise(), 2)


def test_fewer_images_than_asked_for() -> None:
    with pytest.raises(InputError) as error:
        observed(tiny_model(), noise(12), 13)
    assert str(error.value) == "noise has 12 images to train on, fewer than --qat-images 13; pass fewer"


# ---------------------------------------------------------------------------------------------------------- whole runs

RECIPE = {**PLAIN, "epochs": 2, "batch_size": 8, "lr": 0.003, "min_lr": 1e-6, "clip_grad": 1.0}


@pytest.fixture(scope="module")
def student(wide_pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sit_nano distilled from the teacher. Do not write into it."""
    output = tmp_path_factory.mktemp("student") / "run"
    overrides = {**RECIPE, "lr": 0.03, "crop_pct": 1.0}
    run_request(wide_pictures, output, teacher, qat=False, image_size=48, overrides=tuple(overrides.items()))
    return output / "model.safetensors"


def make_request(
    pictures: Path, output: Path, teacher: Path | None, init: Path | None = None, **options: Any
) -> TrainRequest:
    own = {"qat": True, "qat_images": 16, "overrides": tuple(RECIPE.items()), "workers": 0, "log_every": 1}
    frozen = teacher / "model.safetensors" if teacher else None
    return TrainRequest("sit_nano", str(pictures), output, teacher=frozen, init=init, **{**own, **options})


def run_request(*args: Any, stop: Silent | None = None, **options: Any) -> Summary:
    return train(make_request(*args, **options), stop)


@pytest.fixture(scope="module")
def recovered(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary]:
    """The student after quantization-aware FRD; every layer rounds, and clips so much that it shows. Do not write into it."""
    output = tmp_path_factory.mktemp("recovered") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat_calibration, "_on_scale", lambda limit: limit / 2)
        return output, run_request(wide_pictures, output, teacher, student, qat_skip=())


@pytest.mark.slow
def test_what_is_left_is_a_plain_checkpoint_with_thresholds_in_its_card(
    recovered: tuple[Path, Summary], student: Path
) -> None:
    from safetensors.torch import load_file

    path = recovered[0] / "model.safetensors"
    before, after = load_file(student), load_file(path)
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {"blocks.0.attn.qkv.weight", "tsm.0.scale", "patch_embed.bn1.weight", "head.bias"} <= moved
    assert not any("running" in name or "tracked" in name for name in moved)  # the statistics are frozen
    card, old = read_card(path), read_card(student)
    assert card is not None and old is not None and old.quantization is None
    assert (card.image_size, card.preprocessing) == (
        48,
        old.preprocessing,
    )  # as it was trained, by crop_pct 1
    model = load_model("sit_nano", path, 48).model
    nodes = {node for names in qat.deployed_layers(model).values() for node in names}
    assert card.quantization is not None and card.quantization["grid"] == "int8"
    assert card.quantization["thresholds"].keys() == nodes
    assert card.training["qat_images"] == 16 and card.training["qat_skip"] == []


@pytest.mark.slow
def test_the_figures_are_those_of_the_quantized_deploy_form(
    recovered: tuple[Path, Summary], student: Path, wide_pictures: Path, teacher: Path
) -> None:
    """Of the file that is left, as a build would read it."""
    folder, summary = recovered
    path = folder / "model.safetensors"
    card = read_card(path)
    run = set_up(make_request(wide_pictures, folder.parent / "x", teacher, student), HERE, Silent())
    form = rounded_deploy_form(load_model("sit_nano", path, 48).model, card.quantization["thresholds"])
    ours = evaluate(form.float(), run.loaders.val, HERE)
    assert summary.student.top1 == ours.top1
    assert card.metrics["loss"] == pytest.approx(ours.loss, rel=5e-3)
    in_float = evaluate(load_model("sit_nano", path, 48).model, run.loaders.val, HERE)
    assert abs(in_float.loss - ours.loss) > 10 * abs(card.metrics["loss"] - ours.loss)


@pytest.mark.slow
def test_the_log_begins_with_the_float_model(recovered: tuple[Path, Summary], student: Path) -> None:
    folder, summary = recovered
    rows = log_rows(folder, "epoch")
    assert rows[0]["epoch"] == 0
    assert rows[0]["float_top1"] == read_card(student).metrics["top1"]
    assert not any("float_top1" in row for row in rows[1:])
    best = max(rows, key=lambda row: (row["top1"], -row["loss"]))
    assert (summary.best_epoch, summary.student.top1) == (best["epoch"], best["top1"])
    assert {"tokens", "logits"} <= log_rows(folder, "step")[0].keys()


@pytest.mark.slow
def test_a_start_that_nothing_betters_is_kept(wide_pictures: Path, student: Path, tmp_path: Path) -> None:
    """Without a teacher, too: the classification loss alone."""
    overrides = tuple({**RECIPE, "lr": 30.0, "epochs": 1}.items())
    summary = run_request(wide_pictures, tmp_path / "run", None, student, overrides=overrides)
    rows = log_rows(tmp_path / "run", "epoch")
    assert rows[1]["top1"] < rows[0]["top1"] == summary.student.top1
    assert summary.best_epoch == 0
    card = read_card(tmp_path / "run" / "model.safetensors")
    assert (
        "stem/conv1" not in card.quantization["thresholds"] and "head" not in card.quantization["thresholds"]
    )
    assert card.training["qat_skip"] == ["stem/*", "head"]


class Stopper(Silent):
    """Sends SIGTERM after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def steps(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With averaged weights; and it does not calibrate again."""
    few = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0, "batch_size": 12}
    overrides = tuple({**RICH, "lr": 0.003, **few}.items())

    def go(name: str, **options: Any) -> Summary:
        return run_request(wide_pictures, tmp_path / name, teacher, student, overrides=overrides, **options)

    go("whole")
    with pytest.raises(StoppedError):
        go("parts", stop=Stopper(3))
    monkeypatch.setattr("training.set_up.calibrate", None)
    go("parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    parts = read_parts(tmp_path / "whole")
    limits = {name: value for name, value in parts["model"].items() if name.endswith(qat.THRESHOLD)}
    assert len(limits) == 22
    assert all(torch.equal(parts["ema"][name], value) for name, value in limits.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "--qat starts from a trained model; pass its weights with --init"),
        ({"qat_images": 0}, "--qat-images must be at least 1, got 0"),
        ({"qat_images": 49}, "48 images to train on, fewer than --qat-images 49; pass fewer"),
        ({"qat_skip": ("neck",)}, "no quantized layer is called 'neck'"),
    ],
)
def test_what_a_run_refuses(
    changes: dict[str, Any], message: str, wide_pictures: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run_request(wide_pictures, tmp_path / "run", None, **{"init": student, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_starts_from_a_trained_student_only(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run_request(wide_pictures, tmp_path / "run", teacher, teacher / "model.safetensors")
    words = str(error.value)
    assert words.startswith("--qat starts from a trained sit_nano, and ")
    assert "lacks or does not fit 21 of its weights (tsm.0.scale, tsm.0.weight.0.weight, " in words
    other = tmp_path / "other.safetensors"
    from safetensors.torch import load_file

    card = replace(read_card(student), classes=("ant", "bee", "cat", "dog", "eel", "gnu"))
    save_weights(other, load_file(student), card)
    with pytest.raises(
        InputError, match="was trained on other classes: its class 5 is 'gnu', here it is 'fox'"
    ):
        run_request(wide_pictures, tmp_path / "run", None, other)


def test_another_calibration_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "init").write_bytes(b"weights")
    base = TrainRequest("sit_s", "imagenet/", Path("runs/x"), init=tmp_path / "init", qat=True)
    base.check()
    same = base.identity(512)
    assert json.loads(json.dumps(same)) == same
    for changes in ({"qat": False}, {"qat_images": 64}, {"qat_skip": ()}):
        assert replace(base, **changes).identity(512) != same


def test_recovering_takes_a_small_part_of_the_training() -> None:
    for data, before in (("imagenet/", STUDENTS["sit_s"]), ("digits", DIGITS_STUDENT)):
        after = recipe_for("sit_s", distils=True, from_checkpoint=True, data=data, qat=True)
        after.check()
        assert (
            after.lr == before.lr / 10 and after.epochs < before.epochs / 2 and after.min_lr < after.lr / 10
        )
        assert (after.token_weight, after.repeats) == (before.token_weight, before.repeats)
    request = TrainRequest("sit_s", "imagenet/", Path("x"), qat=True, overrides=(("epochs", 7),))
    assert request.recipe.epochs == 7


@pytest.mark.slow
def test_two_processes_and_one(wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path) -> None:
    """Their thresholds are the same to the bit, and so is what they train, within the rounding of sums."""
    recipe = {**RECIPE, "epochs": 1, "repeats": 2}

    def line(name: str, batch_size: int) -> tuple[object, ...]:
        files = ("--init", student, "--teacher", teacher / "model.safetensors", "--data", wide_pictures)
        options = (
            "--qat",
            "--qat-images",
            11,
            "--qat-skip",
            "",
            "--log-every",
            1,
            "--workers",
            0,
            "--device",
            "cpu",
        )
        recipe_words = words({**recipe, "batch_size": batch_size})
        return ("train", "--model", "sit_nano", *files, *options, "-o", tmp_path / name, *recipe_words)

    children = [
        *start_world(tmp_path / "streams", 2, *line("two", 12)),
        start(tmp_path / "alone", *line("one", 24)),
    ]
    results = [child.wait() for child in children]
    assert [r.status for r in results] == [0, 0, 0], [r.err for r in results]
    two, one = (read_card(tmp_path / name / "model.safetensors").quantization for name in ("two", "one"))
    assert two == one and len(two["thresholds"]) == 28
    for ours, theirs in zip(*(log_rows(tmp_path / name) for name in ("two", "one")), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=2e-3)
