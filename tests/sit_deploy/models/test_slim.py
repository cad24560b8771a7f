"""Slimmed vision transformers of timm: what they compute, how they are made, trained and named, and their dist token."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.models import create_model, get_config
from sit_deploy.models.forward import Passing
from sit_deploy.models.slim import SlimDistilledViT, SlimViT, slim
from tests.helpers import numpy_vit
from tests.helpers.models import (
    VIT,
    VIT_PARTS,
    VIT_VARIANTS,
    images,
    plain_vit,
    randomise,
    relative_error,
    shapes_alone,
    tiny_vit,
)


def reference(model: SlimViT, x: torch.Tensor, variant: str) -> numpy_vit.Result:
    options = {**VIT, **VIT_VARIANTS[variant]}
    weights = {k: v.double().numpy() for k, v in model.state_dict().items()}
    return numpy_vit.vit(
        weights,
        x.numpy(),
        options["num_heads"],
        model.stage_blocks,
        average=options.get("global_pool") == "avg",
        embed_class=not options.get("no_embed_class", False),
    )


# ---------------------------------------------------------------------------------------------- what they compute


@torch.no_grad()
@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_one_stage_is_timms_own_model_to_the_bit(variant: str) -> None:
    plain = plain_vit(**VIT_VARIANTS[variant])
    teacher = slim(plain, (6,))
    x = images(teacher)
    assert torch.equal(teacher(x), plain(x))
    found = teacher.forward_frd(x)
    assert torch.equal(found.logits, plain(x))
    last = teacher.norm(torch.cat((torch.zeros(2, teacher.num_prefix_tokens, 32), found.tokens[-1]), dim=1))
    expected = plain.forward_features(x)[:, plain.num_prefix_tokens :]
    assert torch.equal(last[:, plain.num_prefix_tokens :], expected)
    assert teacher.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("parts", VIT_PARTS)
def test_one_stage_of_other_parts_is_timms_own_model_to_the_bit(parts: str) -> None:
    plain = plain_vit(**VIT_PARTS[parts])
    teacher = slim(plain, (6,))
    assert torch.equal(teacher(images(teacher)), plain(images(teacher)))


@torch.no_grad()
@pytest.mark.parametrize("stage_blocks", [(2, 1, 1, 2), pytest.param((1, 5), marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_slimmed_tokens_and_logits_are_the_formulas(variant: str, stage_blocks: tuple[int, ...]) -> None:
    model = tiny_vit(variant, stage_blocks, reverse_tsm=True).double()
    x = images(model).double()
    expected = reference(model, x, variant)
    found = model.forward_frd(x)
    np.testing.assert_allclose(model(x).numpy(), expected.logits, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.forward_features(x).numpy(), expected.features, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.logits.numpy(), expected.logits, rtol=0, atol=1e-10)
    assert found.dist_logits is None
    patches = model.grid_size[0] * model.grid_size[1]
    for tokens, wanted in zip(found.tokens, expected.tokens, strict=True):
        assert tokens.shape == (2, patches, model.embed_dim)
        np.testing.assert_allclose(tokens.numpy(), wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_tsm_that_averages_gives_the_mean_of_the_patches() -> None:
    """With its last Linear zero, every token it makes is the mean of its inputs; the prefix tokens are not in it."""
    model = tiny_vit("registers", (1, 5))
    nn.init.zeros_(model.tsm[0].weight[3].weight)
    x = images(model)
    first = model.blocks[0](model.embed(x))
    slimmed = model._run_block(0, Passing(model.embed(x))).x
    assert slimmed.shape == (2, 5 + 8, 32)
    assert torch.equal(slimmed[:, :5], first[:, :5])
    mean = first[:, 5:].mean(dim=1, keepdim=True).expand(-1, 8, -1)
    torch.testing.assert_close(slimmed[:, 5:], mean)


def test_each_block_sees_the_tokens_of_its_stage() -> None:
    model = tiny_vit("registers")
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1] - 5))
    model(images(model))
    assert seen == [16, 16, 8, 4, 2, 2]
    assert (model.kept, model.slim_after) == ((16, 8, 4, 2), {1: 0, 2: 1, 3: 2})


# --------------------------------------------------------------------------------------------------- how it is made


def test_the_model_given_is_not_changed() -> None:
    plain = plain_vit(reg_tokens=4)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    slimmed = slim(plain, (2, 1, 1, 2), reverse_tsm=True)
    for parameter in slimmed.parameters():
        nn.init.zeros_(parameter)
    assert type(plain) is VisionTransformer
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_names_are_timms_with_tsms_beside_them() -> None:
    plain = plain_vit()
    model = slim(plain, (2, 1, 1, 2), reverse_tsm=True)
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= model.state_dict().keys()
    assert {".".join(k.split(".")[:2]) for k in added} == {
        *("tsm.0", "tsm.1", "tsm.2"),
        *("rtsm.1", "rtsm.2", "rtsm.3", "rtsm.4", "rtsm.5"),
    }
    assert isinstance(model.rtsm[0], nn.Identity)
    assert [r.mlp1.fc1.in_features for r in model.rtsm[1:]] == [8, 4, 2, 2, 2]


def test_interface_of_a_sit() -> None:
    model = tiny_vit("registers without positions", keeping_ratio=0.7)
    assert (model.img_size, model.grid_size, model.in_chans, model.num_classes) == ((64, 64), (4, 4), 3, 7)
    assert (model.embed_dim, model.depth, model.stage_blocks) == (32, 6, (2, 1, 1, 2))
    assert (model.kept, model.num_prefix_tokens, model.has_dist_token) == ((16, 11, 7, 5), 5, False)
    assert tiny_vit(kept=(16, 9, 9, 1)).kept == (16, 9, 9, 1)


def test_new_parts_are_initialised_as_a_sits() -> None:
    torch.manual_seed(0)
    model = slim(VisionTransformer(**VIT), (2, 1, 1, 2), reverse_tsm=True)
    linears = [m for part in (model.tsm, model.rtsm) for m in part.modules() if isinstance(m, nn.Linear)]
    assert all(0.01 < m.weight.std() < 0.03 for m in linears if m.weight.numel() > 30)
    assert not any(m.bias.any() for m in linears)
    assert all(t.scale.item() == 1 for t in model.tsm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_parts_are_of_the_models_type(dtype: torch.dtype) -> None:
    model = slim(VisionTransformer(**VIT).to(dtype), (2, 1, 1, 2), reverse_tsm=True)
    assert {p.dtype for p in model.parameters()} == {dtype}


# ------------------------------------------------------------------------------------------------- how it is trained


def gradients(model: SlimViT, x: torch.Tensor, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.train().set_grad_checkpointing(checkpointing)
    model.zero_grad()
    torch.manual_seed(5)  # drop path
    found = model.forward_frd(x)
    (found.logits.square().sum() + sum(t.square().mean() for t in found.tokens)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_every_parameter_with_and_without_checkpointing() -> None:
    model = slim(VisionTransformer(**VIT, drop_path_rate=0.5), (2, 1, 1, 2), reverse_tsm=True)
    randomise(model)
    runs: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    x = images(model)
    found = gradients(model, x, checkpointing=False)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert len(runs) == 6
    recomputed = gradients(model, x, checkpointing=True)
    assert len(runs) == 6 + 12
    for name, gradient in found.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_frd_needs_reverse_tsms_where_tokens_are_dropped() -> None:
    model = tiny_vit()
    with pytest.raises(InputError, match="reverse_tsm=True"):
        model.forward_frd(images(model))


def test_what_timm_does_with_a_model_still_works() -> None:
    model = tiny_vit("registers", reverse_tsm=True)
    assert model.no_weight_decay() >= {"pos_embed", "cls_token", "reg_token"}
    groups = group_parameters(model, model.group_matcher())
    assert {n for names in groups.values() for n in names} == {n for n, _ in model.named_parameters()}
    model.reset_classifier(3)
    assert model(images(model)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images(model)).shape == (2, 32)
    copied = copy.deepcopy(model)
    assert type(copied) is SlimViT and torch.equal(copied(images(model)), model(images(model)))
    assert pickle.loads(pickle.dumps(model)).kept == model.kept


def test_what_would_silently_skip_the_slimming_is_refused() -> None:
    model = tiny_vit()
    with pytest.raises(InputError, match=r"no place on a grid.*forward_frd"):
        model.forward_intermediates(images(model))
    with pytest.raises(InputError, match=r"no place on a grid"):
        model.get_intermediate_layers(images(model))
    with pytest.raises(InputError, match="another img_size"):
        model.set_input_size((32, 32))
    teacher = tiny_vit(stage_blocks=(6,))
    assert len(teacher.forward_intermediates(images(teacher), intermediates_only=True)) == 6


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_vit("average with registers")
    x = images(model)
    expected = model(x)
    found = model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.float(), expected) < tolerance


# ---------------------------------------------------------------------------------------------------- named ones


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tokens", "mean", "crop_pct"),
    [
        ("deit_small_patch16_224", (196, 98, 49, 24), (0.485, 0.456, 0.406), 0.9),
        ("deit3_small_patch16_224", (196, 98, 49, 24), (0.485, 0.456, 0.406), 0.9),
        ("vit_tiny_patch16_224", (196, 98, 49, 24), (0.5, 0.5, 0.5), 0.9),  # AugReg
        ("vit_small_patch8_224", (784, 392, 196, 98), (0.485, 0.456, 0.406), 0.9),  # DINO
        ("vit_base_patch32_224", (49, 24, 12, 6), (0.5, 0.5, 0.5), 0.9),
        ("vit_base_patch16_384", (576, 288, 144, 72), (0.5, 0.5, 0.5), 1.0),
        ("vit_medium_patch16_reg4_gap_256", (256, 128, 64, 32), (0.5, 0.5, 0.5), 0.95),
        ("vit_small_patch14_reg4_dinov2", (1369, 684, 342, 171), (0.485, 0.456, 0.406), 1.0),
        ("vit_base_patch16_clip_224", (196, 98, 49, 24), (0.48145466, 0.4578275, 0.40821073), 0.95),
        ("vit_base_patch16_224.augreg_in1k", (196, 98, 49, 24), (0.5, 0.5, 0.5), 0.9),
    ],
)
def test_models_of_timm_by_name(
    name: str, tokens: tuple[int, ...], mean: tuple[float, ...], crop_pct: float
) -> None:
    with shapes_alone():
        config = get_config(name, (6, 2, 2, 2))
        model = create_model(config, num_classes=9)
        plain = timm.create_model(name, num_classes=9)
        assert model(torch.zeros(2, 3, *model.img_size)).shape == (2, 9)
        teacher = create_model(name, num_classes=9)
    assert (config.name, config.teacher, config.base) == (name, name, name)
    assert (config.tokens(), config.mean, config.crop_pct) == (tokens, mean, crop_pct)
    assert model.kept == tokens
    shapes = {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v.shape for k, v in teacher.state_dict().items()} == shapes
    assert {k: v.shape for k, v in model.state_dict().items() if not k.startswith("tsm.")} == shapes


def test_sit_deit_is_a_slimmed_deit() -> None:
    with shapes_alone():
        ours = create_model("sit_deit_b", reverse_tsm=True, drop_path_rate=0.1)
        theirs = create_model(get_config("deit_base_patch16_224", (6, 2, 2, 2)), reverse_tsm=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert ours.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert get_config("sit_deit_b").teacher == "deit_base_patch16_224"
    # as timm prepares DeiT's images, which is written down here a second time; but for the crop: SiT and DeiT evaluate at 224 of 256 pixels
    teacher, config = get_config("deit_base_patch16_224"), get_config("sit_deit_b")
    for field in (
        "embed_dim",
        "num_heads",
        "depth",
        "mlp_ratio",
        "patch_size",
        "mean",
        "std",
        "interpolation",
    ):
        assert getattr(config, field) == getattr(teacher, field), field
    assert config.crop_pct == 0.875


def test_image_size_and_slimming_by_keyword() -> None:
    with shapes_alone():
        model = create_model("vit_tiny_patch16_224", img_size=96, stage_blocks=(6, 6), keeping_ratio=0.25)
        assert (model.img_size, model.kept) == ((96, 96), (36, 9))
        assert create_model("sit_deit_s", img_size=128, kept=(64, 40, 20, 10)).kept == (64, 40, 20, 10)


# ---------------------------------------------------------------------------------------------------- the dist token


@torch.no_grad()
def test_a_dist_token_makes_timms_distilled_deit() -> None:
    model = slim(plain_vit(), (6,), dist_token=True)
    assert type(model) is SlimDistilledViT and model.has_dist_token and model.num_prefix_tokens == 2
    plain = plain_vit()
    kept = {k: v for k, v in model.state_dict().items() if k in plain.state_dict() and k != "pos_embed"}
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in kept.items())
    assert torch.equal(model.pos_embed[:, [0, *range(2, 18)]], plain.pos_embed)
    for new in (model.dist_token, model.pos_embed[:, 1], model.head_dist.weight):
        assert 0.01 < new.std() < 0.03
    assert not model.head_dist.bias.any()
    randomise(model, 3)
    theirs = plain_vit(distilled=True)
    theirs.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(model(x), theirs(x))
    found = model.forward_frd(x)
    theirs.train().set_distilled_training()
    expected = theirs(x)
    assert torch.equal(found.logits, expected[0]) and torch.equal(found.dist_logits, expected[1])
    assert [t.shape[1] for t in found.tokens] == [16] * 6


@torch.no_grad()
@pytest.mark.parametrize("variant", ["plain", "registers", "registers without positions"])
def test_a_dist_token_goes_round_the_slimming(variant: str) -> None:
    model = tiny_vit(variant, dist_token=True, reverse_tsm=True)
    assert model.num_prefix_tokens == (2 if variant == "plain" else 6)
    x = images(model)
    embedded = model.embed(x)
    position = 0 if model.no_embed_class else model.pos_embed[:, 1]
    torch.testing.assert_close(embedded[:, 1], (model.dist_token[:, 0] + position).expand(2, -1))
    found = model.forward_frd(x)
    torch.testing.assert_close(model(x), (found.logits + found.dist_logits) / 2)
    assert [t.shape[1] for t in found.tokens] == [16] * 6
    assert relative_error(to_deploy_form(model)(x), model(x)) < 2e-5
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert pickle.loads(pickle.dumps(model)).has_dist_token


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "deit_base_distilled_patch16_384", "sit_deit_s"]
)
def test_distilled_models_by_name(name: str) -> None:
    with shapes_alone():
        model = create_model(name, num_classes=9, dist_token="distilled" not in name)
        assert model.has_dist_token and model(torch.zeros(2, 3, *model.img_size)).shape == (2, 9)
        if "distilled" in name:
            expected = timm.create_model(name, num_classes=9).state_dict()
            assert {k: v.shape for k, v in model.state_dict().items()} == {
                k: v.shape for k, v in expected.items()
            }
