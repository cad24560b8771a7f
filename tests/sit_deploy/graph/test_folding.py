"""Each fold alone equals what it stands for."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch import nn

from sit_deploy.graph import folding
from sit_deploy.graph.deploy_block import DeployAttention
from sit_deploy.models.tsm import TokenSlimming
from tests.helpers.models import close, randomise, tiny_model

pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")


@pytest.mark.parametrize("stride", [1, 2])
def test_batchnorm_is_folded(stride: int) -> None:
    conv = nn.Conv2d(3, 8, 3, stride=stride, padding=1, bias=False)
    bn = nn.BatchNorm2d(8, eps=0.1)  # large enough for a forgotten one to show
    randomise(nn.Sequential(conv, bn)).eval()
    pixels = torch.randn(2, 3, 10, 10)
    close(folding.fold_batchnorm(conv, bn)(pixels), bn(conv(pixels)))


@pytest.mark.parametrize("skip_lam", [2.0, 3.0])
def test_residual_divisor_is_folded(skip_lam: float, x: torch.Tensor) -> None:
    linear = randomise(nn.Linear(32, 16))
    close(folding.fold_gain(linear, 1 / skip_lam)(x), linear(x) / skip_lam)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_scale_is_folded_output_by_output(bias: bool, x: torch.Tensor) -> None:
    linear = randomise(nn.Linear(32, 16, bias=bias))
    gamma = torch.linspace(-2, 2, 16)
    close(folding.fold_gain(linear, gamma)(x), gamma * linear(x))


@pytest.mark.parametrize("gain", [1 / 3, torch.linspace(-2, 2, 32)], ids=["number", "channels"])
@pytest.mark.parametrize("proj_bias", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_attention_is_folded(
    qkv_bias: bool, proj_bias: bool, keep: bool, gain: float | torch.Tensor, x: torch.Tensor
) -> None:
    attention = randomise(Attention(32, num_heads=4, qkv_bias=qkv_bias, proj_bias=proj_bias))
    folded = folding.fold_attention(attention, gain, keep_value_bias=keep)
    assert (folded.query_bias is None) == (not qkv_bias)
    assert (folded.value_bias is None) == (not (qkv_bias and keep))
    assert folded.proj.bias is None or proj_bias or qkv_bias
    form = DeployAttention(attention, gain, keep_value_bias=keep)
    close(form(x), gain * attention(x))
    q, k, _ = form.qkv(x).chunk(3, dim=-1)
    plain_q, plain_k, _ = nn.functional.linear(x, attention.qkv.weight).chunk(3, dim=-1)
    close(q, plain_q / 8**0.5)
    close(k, plain_k)


def test_tsm_scalar_is_folded_and_its_bias_dropped(x: torch.Tensor) -> None:
    tsm = randomise(TokenSlimming(32, 4))
    assert tsm.weight[3].bias.abs().min() > 0
    folded = folding.fold_tsm_scale(tsm)
    close(folded(tsm.weight[:3](x)), (tsm.weight(x) - tsm.weight[3].bias) * tsm.scale)
    close(folded(tsm.weight[:3](x)).softmax(dim=1), (tsm.weight(x) * tsm.scale).softmax(dim=1))


@pytest.mark.parametrize("dist_token", [False, True])
def test_heads_are_merged(dist_token: bool, x: torch.Tensor) -> None:
    model = tiny_model(dist_token=dist_token)
    n = model.num_prefix_tokens
    close(folding.merged_head(model)(x[:, :n].flatten(1)), model.forward_head(x))
