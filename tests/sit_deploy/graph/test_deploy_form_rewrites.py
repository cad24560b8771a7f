"""That each rewrite of the deploy form is needed: with one of them undone or misplaced, its logits are others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sit_deploy.graph.deploy_form import DeployForm, to_deploy_form
from sit_deploy.models.sit import SiT
from tests.helpers.models import (
    images,
    relative_error,
    tiny_model,
    tiny_vit,
)

TOLERANCE = 2e-5  # of the logits' standard deviation


pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")


def assert_seen(model: Any, mutate: Callable[[DeployForm, Any], None]) -> None:
    """Hold the deploy form of a model to it, and what `mutate` makes of that far from it."""
    pixels = images(model)
    expected = model(pixels)
    form = to_deploy_form(model)
    assert relative_error(form(pixels), expected) < TOLERANCE
    mutate(form, copy.deepcopy(model))
    assert relative_error(form(pixels), expected) > 10 * TOLERANCE


def _no_layer_scale(form: DeployForm, model: Any) -> None:
    form.blocks[2].attn.proj = model.blocks[2].attn.proj


def _no_layer_scale_of_the_bias(form: DeployForm, model: Any) -> None:
    form.blocks[2].mlp.fc2.bias = model.blocks[2].mlp.fc2.bias


def _no_scale_of_the_query_bias(form: DeployForm, model: Any) -> None:
    form.blocks[1].attn.query_bias *= form.blocks[1].attn.query_bias.shape[-1] ** 0.5


def _no_value_bias(form: DeployForm, model: Any) -> None:
    block = model.blocks[0]
    form.blocks[0].attn.proj.bias.data = block.ls1.gamma.data * block.attn.proj.bias.data


def _registers_with_positions(form: DeployForm, model: Any) -> None:
    form.embed.position[:, :4] += model.pos_embed[:, :4]


def _registers_averaged(form: DeployForm, model: Any) -> None:
    form.prefix = 0


def _registers_slimmed(form: DeployForm, model: Any) -> None:
    form.tsm[0].prefix = 3


def _norm_before_the_mean(form: DeployForm, model: Any) -> None:
    form.norm, form.fc_norm = form.fc_norm, None


VIT_MUTATIONS = (
    _no_layer_scale, _no_layer_scale_of_the_bias, _no_scale_of_the_query_bias, _no_value_bias, _registers_with_positions,
    _registers_averaged, _registers_slimmed, _norm_before_the_mean,
)  # fmt: skip


@pytest.mark.parametrize("mutate", VIT_MUTATIONS, ids=lambda f: f.__name__.strip("_"))
def test_the_comparison_sees_each_rewrite_of_a_vision_transformer(
    mutate: Callable[[DeployForm, Any], None],
) -> None:
    assert_seen(tiny_vit("average with registers"), mutate)


def _slim_before_the_block(form: DeployForm, model: SiT) -> None:
    form.slim_after = {i - 1: t for i, t in form.slim_after.items()}


def _unfolded_bn(form: DeployForm, model: SiT) -> None:
    form.stem.conv3.weight.data = model.patch_embed.conv3.weight.data


def _without_bn_shift(form: DeployForm, model: SiT) -> None:
    form.stem.conv4.bias.data.zero_()


def _unfolded_attention_skip(form: DeployForm, model: SiT) -> None:
    form.blocks[2].attn.proj = model.blocks[2].attn.proj


def _unfolded_mlp_skip(form: DeployForm, model: SiT) -> None:
    form.blocks[2].mlp.fc2 = model.blocks[2].mlp.fc2


def _unfolded_skip_bias(form: DeployForm, model: SiT) -> None:
    form.blocks[0].mlp.fc2.bias = model.blocks[0].mlp.fc2.bias


def _unfolded_scale(form: DeployForm, model: SiT) -> None:
    form.blocks[1].attn.qkv = model.blocks[1].attn.qkv


def _unfolded_last_scale(form: DeployForm, model: SiT) -> None:
    form.blocks[-1].attn.q.weight.data = model.blocks[-1].attn.qkv.weight.data[:32]


def _unfolded_tsm(form: DeployForm, model: SiT) -> None:
    form.tsm[1].fc2 = model.tsm[1].weight[3]


def _transposed_softmax(form: DeployForm, model: SiT) -> None:
    tsm = form.tsm[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, tsm.prefix :]
        assignment = tsm.fc2(tsm.act(tsm.fc1(tsm.norm(tokens)))).transpose(1, 2).softmax(dim=1)
        return torch.cat((x[:, : tsm.prefix], assignment @ tokens), dim=1)

    tsm.forward = forward


def _slimmed_class_token(form: DeployForm, model: SiT) -> None:
    tsm = form.tsm[0]
    tsm.prefix = 0
    whole = tsm.forward
    tsm.forward = lambda x: torch.cat((x[:, :2], whole(x)), dim=1)


def _position_of_the_neighbour(form: DeployForm, model: SiT) -> None:
    form.embed.position.data = form.embed.position.data.roll(1, dims=1)


def _class_token_twice(form: DeployForm, model: SiT) -> None:
    form.embed.position[:, :1] += model.cls_token


def _one_head_only(form: DeployForm, model: SiT) -> None:
    form.head.weight.data[:, 32:] = 0


def _heads_summed(form: DeployForm, model: SiT) -> None:
    form.head.weight.data *= 2


def _other_tokens_last(form: DeployForm, model: SiT) -> None:
    last = form.blocks[-1]
    forward = last.forward
    last.forward = lambda x: forward(x.flip(1))


def _tanh_gelu(form: DeployForm, model: SiT) -> None:
    for module in form.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


MUTATIONS = (
    _slim_before_the_block, _unfolded_bn, _without_bn_shift, _unfolded_attention_skip, _unfolded_mlp_skip,
    _unfolded_skip_bias, _unfolded_scale, _unfolded_last_scale, _unfolded_tsm, _transposed_softmax, _slimmed_class_token,
    _position_of_the_neighbour, _class_token_twice, _one_head_only, _heads_summed, _other_tokens_last, _tanh_gelu,
)  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__.strip("_"))
def test_the_comparison_sees_each_rewrite(mutate: Callable[[DeployForm, SiT], None]) -> None:
    """An exact form is inside the tolerance, and one with a single rewrite undone or misplaced far outside it."""
    assert_seen(tiny_model(dist_token=True), mutate)
