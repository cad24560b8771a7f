"""SiT and LV-ViT: what they compute, what they are made of, and how they are used in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import CONFIGS, create_model
from sit_deploy.models.sit import SiT
from tests.helpers import numpy_sit
from tests.helpers.models import (
    SLIMMED,
    TINY,
    images,
    randomise,
    relative_error,
    shapes_alone,
    slow_if_published,
    tiny_model,
)

# one model a variation of the architecture; each is compared with the NumPy one in float64
VARIANTS: dict[str, dict[str, Any]] = {
    "sit": {},
    "teacher": {"stage_blocks": (4,)},
    "slims after the first block": {"stage_blocks": (1, 1, 1, 3)},
    "dist token": {"dist_token": True},
    "dist token, unslimmed": {"dist_token": True, "stage_blocks": (3,)},
    "stem and divisor of the large one": {"stem": "6c", "skip_lam": 3.0},
    "not square": {"img_size": (32, 80)},
    "own schedule": {"kept": (16, 11, 5, 3)},
    "keeping ratio": {"keeping_ratio": 0.7},
    "mlp ratio": {"mlp_ratio": 2.5, "num_heads": 2},
}


def reference(model: SiT, x: torch.Tensor, options: dict[str, Any]) -> numpy_sit.Result:
    weights = {k: v.double().numpy() for k, v in model.state_dict().items()}
    made = {**TINY, **options}
    strides = (2, 1, 1, 2, 2, 2) if made.get("stem") == "6c" else (2, 2, 2, 2)
    return numpy_sit.sit(
        weights, x.numpy(), made["num_heads"], made["stage_blocks"], made.get("skip_lam", 2.0), strides
    )


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_papers(variant: str) -> None:
    options = VARIANTS[variant]
    model = tiny_model(**options).double()
    x = images(model).double()
    expected = reference(model, x, options)
    logits = expected.logits if expected.dist_logits is None else (expected.logits + expected.dist_logits) / 2
    np.testing.assert_allclose(model(x).numpy(), logits, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_distillation_compares_is_the_papers(variant: str) -> None:
    options = {**VARIANTS[variant], "reverse_tsm": True}
    model = tiny_model(**options).double()
    x = images(model).double()
    expected = reference(model, x, options)
    found = model.forward_frd(x)
    np.testing.assert_allclose(found.logits.numpy(), expected.logits, rtol=0, atol=1e-10)
    assert (found.dist_logits is None) == (expected.dist_logits is None)
    if found.dist_logits is not None:
        np.testing.assert_allclose(found.dist_logits.numpy(), expected.dist_logits, rtol=0, atol=1e-10)
    assert len(found.tokens) == model.depth
    patches = model.grid_size[0] * model.grid_size[1]
    for tokens, wanted in zip(found.tokens, expected.tokens, strict=True):
        assert tokens.shape == (2, patches, model.embed_dim)
        np.testing.assert_allclose(tokens.numpy(), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [slow_if_published(name) for name in CONFIGS])
def test_each_block_sees_the_tokens_of_its_stage(name: str) -> None:
    with shapes_alone():
        model = create_model(name).eval()
        seen: list[int] = []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        model(torch.zeros(1, 3, *model.img_size))
    config = CONFIGS[name]
    stages = zip(config.stage_blocks, config.tokens(), strict=True)
    assert seen == [tokens + 1 for blocks, tokens in stages for _ in range(blocks)]


def expected_keys(
    dim: int, tokens: tuple[int, ...], blocks: tuple[int, ...], classes: int, rtsm: bool
) -> dict:
    """Names and shapes of an official checkpoint of mlp_ratio 3 and the four-convolution stem."""

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name: str, size: int = dim) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    keys: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens[0] + 1, dim),
        **norm("norm"),
        **linear("head", dim, classes),
        **linear("aux_head", dim, classes),
    }
    channels = 3
    for i, width in enumerate((dim // 8, dim // 4, dim // 2, dim), 1):
        keys[f"patch_embed.conv{i}.weight"] = (width, channels, 3, 3)
        keys |= norm(f"patch_embed.bn{i}", width)
        keys |= {f"patch_embed.bn{i}.running_{statistic}": (width,) for statistic in ("mean", "var")}
        keys[f"patch_embed.bn{i}.num_batches_tracked"] = ()
        channels = width
    for i in range(sum(blocks)):
        keys |= norm(f"blocks.{i}.norm1") | norm(f"blocks.{i}.norm2")
        keys[f"blocks.{i}.attn.qkv.weight"] = (3 * dim, dim)
        keys |= linear(f"blocks.{i}.attn.proj", dim, dim)
        keys |= linear(f"blocks.{i}.mlp.fc1", dim, 3 * dim) | linear(f"blocks.{i}.mlp.fc2", 3 * dim, dim)
    for i, kept in enumerate(tokens[1:]):
        keys |= norm(f"tsm.{i}.weight.0") | linear(f"tsm.{i}.weight.1", dim, dim // 2)
        keys |= linear(f"tsm.{i}.weight.3", dim // 2, kept)
        keys[f"tsm.{i}.scale"] = (1, 1, 1)
    per_block = [t for t, n in zip(tokens, blocks, strict=True) for _ in range(n)]
    after = [*per_block[1:], tokens[-1]]
    for i, kept in enumerate(after):
        if rtsm and kept < tokens[0]:  # before anything is dropped it is an Identity, without a key
            keys |= norm(f"rtsm.{i}.norm1") | norm(f"rtsm.{i}.norm2")
            keys |= linear(f"rtsm.{i}.mlp1.fc1", kept, 4 * tokens[0])
            keys |= linear(f"rtsm.{i}.mlp1.fc2", 4 * tokens[0], tokens[0])
            keys |= linear(f"rtsm.{i}.mlp2.fc1", dim, 4 * dim) | linear(f"rtsm.{i}.mlp2.fc2", 4 * dim, dim)
    return keys


@pytest.mark.parametrize("rtsm", [False, True])
@pytest.mark.parametrize("name", ["sit_nano", "sit_t", "sit_s", "lvvit_s"])
def test_state_dict_is_that_of_the_official_checkpoints(name: str, rtsm: bool) -> None:
    config = CONFIGS[name]
    with shapes_alone():
        model = create_model(name, reverse_tsm=rtsm)
    found = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert found == expected_keys(config.embed_dim, config.tokens(), config.stage_blocks, 1000, rtsm)


def test_state_dict_of_the_large_stem_and_the_dist_token() -> None:
    model = tiny_model(stem="6c", dist_token=True)
    found = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    widths = [found[f"patch_embed.conv{i}.weight"][:2] for i in range(1, 7)]
    assert widths == [(4, 3), (4, 4), (4, 4), (8, 4), (16, 8), (32, 16)]
    assert found["dist_token"] == found["dist_pos_embed"] == (1, 1, 32)
    assert found["head_dist.weight"] == (7, 32)


def test_reverse_tsm_is_identity_before_anything_is_dropped() -> None:
    model = tiny_model(reverse_tsm=True)  # slims after blocks 1, 2 and 3
    kinds = [isinstance(r, nn.Identity) for r in model.rtsm]
    assert kinds == [True, False, False, False, False, False]
    assert [r.mlp1.fc1.in_features for r in model.rtsm[1:]] == [8, 4, 2, 2, 2]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"stage_blocks": (4,)}, {"dist_token": True}])
def test_frd_logits_are_those_of_forward(options: dict[str, Any]) -> None:
    model = tiny_model(reverse_tsm=True, **options)
    x = images(model)
    found = model.forward_frd(x)
    logits = found.logits if found.dist_logits is None else (found.logits + found.dist_logits) / 2
    assert torch.equal(logits, model(x))


def test_frd_needs_reverse_tsms_where_tokens_are_dropped() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="reverse_tsm=True"):
        model.forward_frd(images(model))
    teacher = tiny_model(stage_blocks=(6,))
    assert len(teacher.forward_frd(images(teacher)).tokens) == 6


def test_frd_output_cannot_be_altered() -> None:
    model = tiny_model(reverse_tsm=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.forward_frd(images(model)).logits = None  # type: ignore[misc]


@torch.no_grad()
def test_without_classes_it_gives_the_class_tokens_features() -> None:
    model = tiny_model(num_classes=0)
    x = images(model)
    features = model.forward_features(x)
    assert features.shape == (2, 1 + 2, 32)
    assert torch.equal(model(x), features[:, 0])
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 0])
    assert isinstance(model.aux_head, nn.Identity)
    assert model.forward_frd is not None
    with_dist = tiny_model(num_classes=0, dist_token=True)
    both = with_dist.forward_features(x)
    assert torch.equal(with_dist(x), (both[:, 0] + both[:, 1]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reset_classifier_replaces_every_head(dtype: torch.dtype) -> None:
    model = tiny_model(dist_token=True).to(dtype)
    before = model.head
    model.reset_classifier(3)
    heads = (model.head, model.aux_head, model.head_dist)
    assert [tuple(h.weight.shape) for h in heads] == [(3, 32)] * 3
    assert model.get_classifier() is model.head is not before
    assert model.num_classes == 3
    assert [h.weight.requires_grad for h in heads] == [True, False, True]
    assert model.head.weight.std() > 0
    assert not model.head.bias.any()
    assert model(images(model).to(dtype)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images(model).to(dtype)).shape == (2, 32)


def test_aux_head_is_frozen_and_unused() -> None:
    model = tiny_model()
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "aux_head.weight",
        "aux_head.bias",
    ]
    x = images(model)
    before = model(x)
    nn.init.constant_(model.aux_head.weight, 99.0)
    assert torch.equal(model(x), before)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_model(dist_token=True)
    x = images(model)
    expected = model(x)
    found = model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.float(), expected) < tolerance


def gradients(model: SiT, x: torch.Tensor, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.train().set_grad_checkpointing(checkpointing)
    model.zero_grad()
    torch.manual_seed(5)  # drop path
    found = model.forward_frd(x)
    (found.logits.square().sum() + sum(t.square().mean() for t in found.tokens)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_gradient_checkpointing_recomputes_blocks_and_changes_nothing(drop_path: float) -> None:
    model = tiny_model(reverse_tsm=True, drop_path_rate=drop_path)
    runs: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    x = images(model)
    plain = gradients(model, x, checkpointing=False)
    once = len(runs)
    recomputed = gradients(model, x, checkpointing=True)
    assert (once, len(runs) - once) == (6, 12)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_gradients_reach_every_trained_parameter() -> None:
    model = tiny_model(reverse_tsm=True, dist_token=True).train()
    found = model.forward_frd(images(model))
    loss = found.logits.square().sum() + found.dist_logits.square().sum()
    (loss + sum(t.square().mean() for t in found.tokens)).backward()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert idle == []


def test_drop_path_grows_linearly_with_depth() -> None:
    model = SiT(**{**TINY, "drop_path_rate": 0.3, "stage_blocks": (4,)})
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert isinstance(
        SiT(**{**TINY, "stage_blocks": (1,), "drop_path_rate": 0.3}).blocks[0].drop_path, nn.Identity
    )


@pytest.mark.parametrize(
    ("size", "hint"),
    [(100, "96 or 112"), ((64, 100), "96 or 112"), ((100, 64), "96 or 112"), (8, "16 or 32"), (0, "16 or 32"), (-16, "16 or 32")],
)  # fmt: skip
def test_image_sizes_that_16_does_not_divide(size: Any, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        SiT(**{**TINY, "img_size": size})
    message = str(caught.value)
    assert "divisible by 16" in message
    assert message.endswith(f"take {hint}")


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": 32},  # 4, 2, 1, 0
        {"keeping_ratio": 0.1},
        {"kept": (16, 8, 4)},
        {"kept": (15, 8, 4, 2)},
        {"kept": (16, 8, 4, 0)},
        {"kept": (16, 8, 9, 2)},
        {"kept": (16, 17, 9, 2)},
        {"keeping_ratio": 1.1},
        {"stage_blocks": (2, 0, 1, 2)},
        {"stage_blocks": (2, 1, 2, 0)},
    ],
)
def test_schedules_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        SiT(**{**TINY, **options})
    assert "token schedule" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_smallest_image_that_keeps_a_token() -> None:
    assert SiT(**{**TINY, "img_size": 48}).kept == (9, 4, 2, 1)


def test_images_of_another_size_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match=r"\(64, 64\), got \(64, 48\)"):
        model(torch.zeros(1, 3, 64, 48))


@torch.no_grad()
def test_channels() -> None:
    model = tiny_model(in_chans=1)
    assert model.in_chans == 1
    assert model(images(model)).shape == (2, 7)


@torch.no_grad()
def test_each_image_of_a_batch_is_on_its_own() -> None:
    model = tiny_model(dist_token=True).double()
    x = images(model, batch=3).double()
    torch.testing.assert_close(model(x), torch.cat([model(part) for part in x.split(1)]))


@pytest.mark.parametrize("name", SLIMMED)
def test_position_and_tokens_are_spared_weight_decay(name: str) -> None:
    with shapes_alone():
        model = create_model(name, dist_token=True)
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "dist_token", "dist_pos_embed"}
    assert model.no_weight_decay() <= {n for n, _ in model.named_parameters()}


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = SiT(**{**TINY, "reverse_tsm": True, "dist_token": True})
    drawn = {n: p for n, p in model.named_parameters() if n.endswith(("_token", "pos_embed"))}
    drawn |= {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    off = {n: p.std().item() for n, p in drawn.items() if p.numel() > 30 and not 0.01 < p.std() < 0.03}
    assert not off
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)
    assert all(t.scale.item() == 1 for t in model.tsm)


def test_group_matcher_covers_every_parameter() -> None:
    from timm.models import group_parameters

    model = tiny_model(dist_token=True)
    groups = group_parameters(model, model.group_matcher())
    assert {n for names in groups.values() for n in names} >= {n for n, _ in model.named_parameters()}
    assert len(groups) == 1 + model.depth + 1


@torch.no_grad()
def test_randomised_models_differ_by_seed_only() -> None:
    a, b, c = (randomise(SiT(**TINY), seed).eval() for seed in (0, 0, 1))
    x = images(a)
    assert torch.equal(a(x), b(x))
    assert not torch.allclose(a(x), c(x), atol=0.1)
