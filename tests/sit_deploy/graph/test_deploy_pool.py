"""Attention pooling by a learned query: no key is computed, and tokens are averaged before they become values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import nn

from calibration.layers import find_layers
from calibration.plan import DEFAULT_GROUPS
from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.deploy_pool import DeployAttentionPool
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.inspect import count_macs
from sit_deploy.models.slim import slim
from tests.helpers.models import VIT_PARTS, close, plain_vit, randomise, vit_of

pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"latent_len": 3},
        {"latent_len": 3, "pool_type": "avg"},
        {"latent_dim": 8, "norm_layer": nn.LayerNorm},
        {"q_proj": False, "norm_layer": nn.LayerNorm, "mlp_ratio": 2.0},
        {"act_layer": nn.SiLU, "out_features": 12},
    ],
    ids=str,
)
def test_it_pools_as_timms(options: dict[str, Any]) -> None:
    pool = randomise(AttentionPoolLatent(32, num_heads=4, **options)).eval()
    x = torch.randn(3, 9, 32)
    close(DeployAttentionPool(pool)(x), pool(x))


def test_it_costs_a_small_part_of_it() -> None:
    """Keys and values of all tokens, 2 · N · dim², are gone."""
    model = vit_of("attention pooling")
    graph = export_onnx(to_deploy_form(model), model.img_size)
    pool = [node.name for node in graph.graph.node if node.name.startswith("pool/")]
    assert {"pool/scores", "pool/proj"} <= set(pool)
    mean = slim(plain_vit(class_token=False, global_pool="avg", fc_norm=False), (6,)).eval()
    plain = export_onnx(to_deploy_form(mean), model.img_size)
    once = 32 * 32 + 2 * 32 * 128  # proj and the MLP, of one token
    values, scores, mixing = 32 * 32, 16 * 32 * 4, 4 * 16 * 32
    assert count_macs(graph) - count_macs(plain) == once + values + scores + mixing


def test_it_stays_out_of_8_bits_unless_asked_for() -> None:
    model = vit_of("attention pooling")
    layers = find_layers(export_onnx(to_deploy_form(model), model.img_size))
    pooled = {layer.group for name, layer in layers.items() if name.startswith("pool/")}
    assert pooled == {"pool"} and "pool" not in DEFAULT_GROUPS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.attn_pool, "k_norm", nn.LayerNorm(8)), "with positions or normalised keys"),
        (lambda m: setattr(m.attn_pool, "pos_embed", nn.Parameter(torch.zeros(16, 32))), "with positions"),
        (lambda m: setattr(m.attn_pool, "proj", nn.Identity()), "without a projection"),
        (lambda m: setattr(m, "global_pool", "avg"), "AttentionPoolLatent as its pooling"),
    ],
)
def test_what_it_does_not_know_is_not_slimmed(change: Any, message: str) -> None:
    model = plain_vit(**VIT_PARTS["attention pooling"])
    change(model)
    with pytest.raises(InputError, match=message):
        slim(model, (3, 3))
