"""The start from scratch: its variances and positions by the formulas of their papers, and nothing else touched."""

from __future__ import annotations

import math

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models.sit import SiT
from tests.helpers.models import WHOLE, tiny_vit, whole_model
from training.init_weights import initialise, sine_cosine_positions

WIDE = {"img_size": 64, "num_classes": 7, "embed_dim": 192, "num_heads": 3, "stage_blocks": (3,)}


def wide() -> SiT:
    torch.manual_seed(5)
    return SiT(**WIDE)


def test_block_layers_have_the_variance_of_glorot() -> None:
    model = wide()
    initialise(model)
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)  # three square matrices, not one tall one
        layers = [q, k, v, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight]
        for weight in layers:
            limit = math.sqrt(6 / sum(weight.shape))
            assert weight.abs().max() <= limit
            assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)


def test_positions_by_the_formula() -> None:
    table = sine_cosine_positions(3, 5, 16)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(torch.unique(table, dim=0)) == 15


def test_patches_get_positions_and_prefix_tokens_get_none() -> None:
    model = SiT(**WIDE, dist_token=True)
    initialise(model)
    assert torch.equal(model.pos_embed[0, 1:], sine_cosine_positions(4, 4, 192))
    assert not model.pos_embed[0, 0].any() and not model.dist_pos_embed.any()
    assert model.pos_embed.requires_grad


@pytest.mark.parametrize("variant", ["plain", "average without class token", "registers without positions"])
def test_timm_models_start_the_same_way(variant: str) -> None:
    model = tiny_vit(variant)
    initialise(model)
    patches = model.patch_embed.num_patches
    rows, columns = model.patch_embed.grid_size
    expected = sine_cosine_positions(rows, columns, model.embed_dim)
    assert torch.equal(model.pos_embed[0, -patches:], expected)
    assert not model.pos_embed[0, :-patches].any()
    bound = math.sqrt(6 / (2 * model.embed_dim))
    q = model.blocks[0].attn.qkv.weight[: model.embed_dim]
    assert 0.8 * bound < q.abs().max() <= bound


@pytest.mark.parametrize("name", WHOLE)
def test_models_taken_whole_start_too(name: str) -> None:
    model = whole_model(name)
    initialise(model)
    positions = getattr(model, "pos_embed", None)
    if positions is not None:
        expected = sine_cosine_positions(4, 4, model.embed_dim)
        assert torch.equal(positions.reshape(1, -1, model.embed_dim)[0, -16:], expected)


def test_same_seed_same_weights_and_nothing_else_changes() -> None:
    models = [wide() for _ in range(3)]
    before = {k: v.clone() for k, v in models[0].state_dict().items()}
    state = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialise(model, seed)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (m.state_dict() for m in models)
    assert all(torch.equal(a[k], b[k]) for k in a)
    changed = {k for k in a if not torch.equal(a[k], before[k])}
    assert changed == {k for k in a if k == "pos_embed" or (k.startswith("blocks") and a[k].ndim == 2)}
    assert not torch.equal(a["blocks.0.mlp.fc1.weight"], c["blocks.0.mlp.fc1.weight"])


def test_width_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="divisible by 4, got 30"):
        sine_cosine_positions(2, 2, 30)


@pytest.mark.slow
def test_it_learns_where_the_usual_start_hardly_does() -> None:
    """What it is for, in small: which patch is bright, after some dozens of steps, from the same images."""
    means = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = SiT(img_size=48, num_classes=9, embed_dim=64, num_heads=2, stage_blocks=(6,))
        if ours:
            initialise(model)
        optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(40):
            place = torch.randint(0, 9, (16,), generator=generator)
            bright = torch.nn.functional.one_hot(place, 9).view(16, 1, 3, 3).float()
            noise = torch.randn(16, 3, 48, 48, generator=generator) * 0.3
            images = noise + torch.nn.functional.interpolate(bright, scale_factor=16)
            loss = torch.nn.functional.cross_entropy(model(images), place)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        means.append(sum(losses[-10:]) / 10)
    usual, start = means
    assert start < 0.8 * usual
