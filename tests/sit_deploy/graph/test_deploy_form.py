"""The deploy form: each module alone, all of them together on every model, and what surrounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.graph import deploy_block, deploy_form
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.models import CONFIGS, get_config
from sit_deploy.models.sit import Block
from sit_deploy.models.slim import slim
from sit_deploy.models.tsm import TokenSlimming
from tests.helpers.models import (
    VIT_PARTS,
    VIT_VARIANTS,
    close,
    images,
    named_model,
    plain_vit,
    randomise,
    relative_error,
    slow_if_published,
    tiny_model,
    tiny_vit,
)

TOLERANCE = 2e-5  # of the logits' standard deviation


pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")


# --- each rewrite alone ---


@pytest.mark.parametrize("dist_token", [False, True])
def test_position_table_replaces_the_concatenation(dist_token: bool) -> None:
    model = tiny_model(dist_token=dist_token)
    embedding = deploy_form.DeployEmbedding(model)
    assert embedding.position.shape == (1, 16 + 1 + dist_token, 32)
    close(embedding(model.patch_embed(images(model))), model.embed(images(model)))


def test_attention_keeps_its_result(x: torch.Tensor) -> None:
    attention = tiny_model().blocks[0].attn
    close(deploy_block.DeployAttention(attention, 1 / 3)(x), attention(x) / 3.0)


@pytest.mark.parametrize("prefix", [1, 2])
def test_last_attention_is_that_of_the_prefix_tokens(prefix: int, x: torch.Tensor) -> None:
    attention = tiny_model().blocks[0].attn
    found = deploy_block.FirstAttention(attention, 0.5, prefix)(x)
    assert found.shape == (2, prefix, 32)
    close(found, attention(x)[:, :prefix] / 2.0)


@pytest.mark.parametrize("prefix", [None, 1, 2])
def test_block_keeps_its_result(prefix: int | None, x: torch.Tensor) -> None:
    block: Block = tiny_model(skip_lam=3.0).blocks[0]
    close(deploy_block.DeployBlock(block, prefix)(x), block(x)[:, :prefix])


@pytest.mark.parametrize("prefix", [1, 2])
def test_slimming_leaves_the_prefix_alone(prefix: int, x: torch.Tensor) -> None:
    tsm = randomise(TokenSlimming(32, 4))
    found = deploy_form.DeployTSM(tsm, prefix)(x)
    assert torch.equal(found[:, :prefix], x[:, :prefix])
    close(found[:, prefix:], tsm(x[:, prefix:]))


def tokens_into(modules: dict[str, nn.Module], run: Callable[[], Any]) -> dict[str, int]:
    """Return how many tokens of an image each module is given while `run` runs."""
    seen: dict[str, int] = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape[1]}))
        for name, m in modules.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("dist_token", [False, True])
@pytest.mark.parametrize("stages", [(2, 1, 1, 2), (3,)])
def test_last_block_computes_the_prefix_tokens_only(stages: tuple[int, ...], dist_token: bool) -> None:
    model = tiny_model(stage_blocks=stages, dist_token=dist_token)
    form = to_deploy_form(model)
    n, kept = model.num_prefix_tokens, model.kept[-1]
    for part, expected in (
        ("norm1", n + kept), ("attn.kv", n + kept), ("attn.q", n), ("attn.proj", n), ("norm2", n), ("mlp.fc1", n), ("mlp.fc2", n),
    ):  # fmt: skip
        module = form.blocks[-1].get_submodule(part)
        assert tokens_into({part: module}, lambda: form(images(model))) == {part: expected}
    inner = {"fc1": form.blocks[-2].mlp.fc1, "norm": form.norm}
    before = n + (model.kept[-1] if stages[-1] > 1 else model.kept[-2])
    assert tokens_into(inner, lambda: form(images(model))) == {"fc1": before, "norm": n}
    # the plain model computes them all
    plain = {"fc1": model.blocks[-1].mlp.fc1, "norm": model.norm}
    assert tokens_into(plain, lambda: model(images(model))) == {"fc1": n + kept, "norm": n + kept}


def test_softmax_of_slimming_is_over_the_input_tokens_on_the_last_axis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[tuple[int, ...], int]] = []
    softmax = torch.Tensor.softmax

    def record(self: torch.Tensor, dim: int) -> torch.Tensor:
        calls.append((tuple(self.shape), dim))
        return softmax(self, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", record)
    deploy_form.DeployTSM(randomise(TokenSlimming(32, 4)), prefix=1)(torch.randn(2, 9, 32))
    assert calls == [((2, 4, 8), -1)]


# --- all of them together ---


@pytest.mark.parametrize("name", [slow_if_published(name) for name in CONFIGS])
def test_every_model_keeps_its_logits(name: str) -> None:
    heads = get_config(name).num_heads
    model = named_model(name, img_size=112, embed_dim=8 * heads)  # no rewrite depends on the sizes
    assert (len(model.blocks), model.blocks[0].attn.num_heads) == (get_config(name).depth, heads)
    pixels = images(model)
    expected = model(pixels)
    assert expected.std() > 0.1
    assert relative_error(to_deploy_form(model)(pixels), expected) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"dist_token": True},
        {"dist_token": True, "stage_blocks": (3,)},
        {"stem": "6c", "skip_lam": 3.0},
        {"img_size": (48, 80)},
        {"in_chans": 1},
        {"reverse_tsm": True},
        {"kept": (16, 11, 5, 3)},
        {"keeping_ratio": 1.0},
        {"stage_blocks": (1,)},
        {"stage_blocks": (1, 1)},
        {"num_classes": 1},
    ],
)
def test_every_variation_keeps_its_logits(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    pixels = images(model, batch=5)
    form = to_deploy_form(model)
    expected = model(pixels)
    assert (form(pixels) - expected).abs().max() < TOLERANCE * max(expected.std(), 0.5)
    assert not any("rtsm" in n or "aux" in n for n, _ in form.named_modules())


@pytest.mark.parametrize(
    "stage_blocks",
    [(2, 1, 1, 2), *(pytest.param(blocks, marks=pytest.mark.slow) for blocks in ((6,), (5, 1)))],
)
@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_every_vision_transformer_keeps_its_logits(variant: str, stage_blocks: tuple[int, ...]) -> None:
    model = tiny_vit(variant, stage_blocks, reverse_tsm=True)
    pixels = images(model, batch=5)
    expected = model(pixels)
    assert expected.std() > 0.1
    form = to_deploy_form(model)
    assert relative_error(form(pixels), expected) < TOLERANCE
    kinds = {type(m) for m in form.modules()}
    assert not kinds & {nn.Identity, nn.Dropout}
    assert not any("rtsm" in n or "ls" in n.split(".") for n, _ in form.named_modules())


@pytest.mark.parametrize("parts", VIT_PARTS)
def test_other_attention_and_mlps_keep_their_logits(parts: str) -> None:
    model = randomise(slim(plain_vit(**VIT_PARTS[parts]), (2, 1, 1, 2))).eval()
    pixels = images(model, batch=5)
    expected = model(pixels)
    assert expected.std() > 0.1
    assert relative_error(to_deploy_form(model)(pixels), expected) < TOLERANCE
    assert relative_error(to_deploy_form(model, keep_value_bias=True)(pixels), expected) < TOLERANCE


@pytest.mark.parametrize("variant", ["plain", "average with registers"])
def test_the_bias_of_the_values_can_stay_with_them(variant: str) -> None:
    """As thresholds of a model that was trained in 8 bits want it: `proj` then reads what it read in training."""
    model = tiny_vit(variant)
    pixels = images(model)
    form = to_deploy_form(model, keep_value_bias=True)
    read: dict[str, torch.Tensor] = {}
    for name, owner in (("plain", model), ("form", form)):
        owner.blocks[0].attn.proj.register_forward_pre_hook(
            lambda _, args, name=name: read.update({name: args[0]})
        )
    assert relative_error(form(pixels), model(pixels)) < TOLERANCE
    assert relative_error(read["form"], read["plain"]) < TOLERANCE
    folded = to_deploy_form(model)
    assert folded.blocks[0].attn.value_bias is None
    assert relative_error(folded(pixels), model(pixels)) < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "into_last", "into_norm"),
    # tokens of the last block's MLP and of the last norm: the class token, or all of them and then the patches
    [("plain", 1, 1), ("registers", 1, 1), ("average after the norm", 1 + 2, 2), ("average with registers", 4 + 2, None)],
)  # fmt: skip
def test_last_block_computes_what_the_head_reads(variant: str, into_last: int, into_norm: int | None) -> None:
    model = tiny_vit(variant)
    form = to_deploy_form(model)
    seen = tokens_into({"last": form.blocks[-1].mlp.fc1}, lambda: form(images(model)))
    assert seen == {"last": into_last}
    if into_norm is not None:
        assert tokens_into({"norm": form.norm}, lambda: form(images(model))) == {"norm": into_norm}


# --- what surrounds them ---


def test_plain_model_is_not_changed() -> None:
    model = tiny_model(reverse_tsm=True, dist_token=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = {n: p.requires_grad for n, p in model.named_parameters()}
    form = to_deploy_form(model)
    form(images(model))
    for parameter in form.parameters():
        parameter.zero_()
    assert model.training
    assert all(m.training for m in model.modules())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == frozen
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_result_is_float32_frozen_and_in_eval_mode(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype).train()
    form = to_deploy_form(model)
    assert {t.dtype for t in (*form.parameters(), *form.buffers())} == {torch.float32}
    assert not any(p.requires_grad for p in form.parameters())
    assert not any(m.training for m in form.modules())
    assert form(images(model)).dtype == torch.float32


def test_drop_path_is_gone() -> None:
    model = tiny_model(drop_path_rate=0.9)
    pixels = images(model)
    assert relative_error(to_deploy_form(model.train())(pixels), model.eval()(pixels)) < TOLERANCE


def test_a_model_without_classifier_is_refused() -> None:
    with pytest.raises(InputError, match=r"no classifier.*with a head"):
        to_deploy_form(tiny_model(num_classes=0))


def test_nothing_is_left_that_inference_does_not_use() -> None:
    model = tiny_model(reverse_tsm=True, dist_token=True)
    form = to_deploy_form(model)
    used: set[int] = set()
    for module in form.modules():
        module.register_forward_pre_hook(lambda m, _: used.update(id(p) for p in m.parameters(recurse=False)))
    form(images(model))
    assert [n for n, p in form.named_parameters() if id(p) not in used] == []
    kinds = {type(m) for m in form.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Identity, nn.Dropout}
