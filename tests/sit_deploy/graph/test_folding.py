"""Each fold alone equals what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sit_deploy.graph import folding
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


@pytest.mark.parametrize("bias", [True, False])
def test_attention_scale_is_folded_into_the_queries_alone(bias: bool, x: torch.Tensor) -> None:
    qkv = randomise(nn.Linear(32, 96, bias=bias))
    q, k, v = folding.fold_attention_scale(qkv, num_heads=4)(x).chunk(3, dim=-1)
    expected = qkv(x).chunk(3, dim=-1)
    close(q, expected[0] / 8**0.5)
    close(k, expected[1])
    close(v, expected[2])


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
