"""Merging tokens without training: against loops in numpy, at the limits, and in the models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.methods import MERGE, TRAINING_FREE, TRANSFORM
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import slim
from sit_deploy.models.token_reduction import (
    Evidence,
    TokenReduction,
    matching_shares,
    merge_shares,
    merged,
    pool_tokens,
    size_bias,
    transform_shares,
)
from tests.helpers.models import (
    TINY,
    VIT_PARTS,
    close,
    images,
    plain_vit,
    randomise,
    tiny_model,
)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


KEYS = np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32)
IMPORTANCE = np.random.default_rng(1).random(11).astype(np.float32)
SIZES = np.random.default_rng(2).integers(1, 5, 11).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def naive_transform(keys: np.ndarray, importance: np.ndarray, kept: int, temperature: float) -> np.ndarray:
    """Shares (kept, N), token by token."""
    chosen = sorted(range(len(keys)), key=lambda i: -importance[i])[:kept]
    shares = np.zeros((kept, len(keys)))
    for i, key in enumerate(keys):
        likeness = np.exp([temperature * cosine(key, keys[j]) for j in chosen])
        shares[:, i] = likeness / likeness.sum()
    return shares


def naive_matching(keys: np.ndarray, kept: int) -> list[list[int]]:
    """Which tokens each one that is made is of: those of even number that stay alone, then those of odd number."""
    even, odd = range(0, len(keys), 2), range(1, len(keys), 2)
    best = {i: max(odd, key=lambda j: cosine(keys[i], keys[j])) for i in even}
    by_likeness = sorted(even, key=lambda i: cosine(keys[i], keys[best[i]]))
    alone, joining = by_likeness[: kept - len(odd)], by_likeness[kept - len(odd) :]
    return [[i] for i in alone] + [[j, *(i for i in joining if best[i] == j)] for j in odd]


def batch(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.stack((a, a[::-1]))) for a in arrays)


@pytest.mark.parametrize("kept", [1, 4, 11])
@pytest.mark.parametrize("temperature", [1.0, 40.0])
def test_transformation_spreads_each_token_over_the_important_ones(kept: int, temperature: float) -> None:
    found = transform_shares(*batch(KEYS, IMPORTANCE), kept, temperature)
    expected = naive_transform(KEYS, IMPORTANCE, kept, temperature)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(found.sum(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize("kept", [5, 6, 8, 10, 11])
def test_matching_joins_the_most_similar_pairs(kept: int) -> None:
    (keys,) = batch(KEYS)
    found = matching_shares(keys, kept)[0].numpy()
    groups = [sorted(np.flatnonzero(row).tolist()) for row in found]
    assert groups == [sorted(group) for group in naive_matching(KEYS, kept)]
    assert set(np.unique(found)) <= {0, 1}
    np.testing.assert_array_equal(found.sum(axis=0), 1)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_where_more_than_half_must_go_the_merged_are_matched_again(kept: int) -> None:
    keys, sizes = batch(KEYS, SIZES)
    found = merge_shares(keys, kept, sizes)[0].numpy()
    groups, means, total = [[i] for i in range(11)], KEYS, SIZES
    while len(groups) > kept:
        made = naive_matching(means, max(kept, len(means) // 2))
        groups = [[k for i in group for k in groups[i]] for group in made]
        means = np.stack([np.average(means[g], axis=0, weights=total[g]) for g in made])
        total = np.array([total[g].sum() for g in made])
    assert [np.flatnonzero(row).tolist() for row in found] == [sorted(group) for group in groups]


def test_means_are_weighted_by_shares_and_sizes() -> None:
    shares = transform_shares(*batch(KEYS, IMPORTANCE), 3)
    tokens, sizes = batch(KEYS, SIZES)
    found, total, assignment = merged(shares, tokens, sizes)
    weights = shares[0].numpy() * SIZES
    np.testing.assert_allclose(total[0], weights.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(total.sum(dim=1), SIZES.sum(), rtol=1e-5)  # no patch is lost
    np.testing.assert_allclose(assignment.sum(dim=2), 1, rtol=1e-5)
    np.testing.assert_allclose(found[0], weights @ KEYS / weights.sum(axis=1, keepdims=True), atol=1e-5)
    close(merged(shares, tokens)[0], merged(shares, tokens, torch.ones_like(sizes))[0])


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_another_order_of_tokens_makes_the_same_tokens(method: str) -> None:
    """Of matching, that holds for orders that keep even with even and odd with odd."""
    order = np.array([8, 3, 4, 9, 0, 1, 10, 7, 2, 5, 6])
    keys, importance, sizes = batch(KEYS, IMPORTANCE, SIZES)
    reduction = TokenReduction(method, 6)
    made = reduction(keys, Evidence(keys, importance), sizes)[0][0]
    moved = [t[:, order] for t in (keys, importance, sizes)]
    again = reduction(moved[0], Evidence(*moved[:2]), moved[2])[0][0]
    assert sorted(map(tuple, again.round(decimals=4).tolist())) == sorted(
        map(tuple, made.round(decimals=4).tolist())
    )


def test_attention_counts_a_token_as_often_as_patches_it_stands_for() -> None:
    block = tiny_model().blocks[0]
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[2.0, 1.0, 3.0]])
    several = torch.cat(
        (x[:, :3], *(x[:, i : i + 1].expand(-1, int(s), -1) for i, s in enumerate(sizes[0], 3))), dim=1
    )
    found = block(x, attn_mask=size_bias(sizes, 3))
    expected = block(several)
    close(found[:, :3], expected[:, :3])
    close(found[:, 3], expected[:, 3])


def test_pooling_counts_a_token_as_often_as_patches_it_stands_for() -> None:
    tokens, sizes = (
        torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[2.0, 1.0, 3.0]]),
    )
    several = torch.cat([tokens[:, i : i + 1].expand(-1, int(s), -1) for i, s in enumerate(sizes[0])], dim=1)
    for kind in ("avg", "max", "avgmax"):
        close(pool_tokens(tokens, kind, sizes), pool_tokens(several, kind))


# --- in the models ---


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_a_teachers_weights_are_taken_as_they_are(method: str) -> None:
    teacher = tiny_model(stage_blocks=(6,))
    model = SiT(**TINY, method=method).eval()
    model.load_state_dict(teacher.state_dict())
    assert model.kept == (16, 8, 4, 2)
    found = model(images(model))
    assert found.isfinite().all() and not torch.allclose(found, teacher(images(model)), atol=1e-2)


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_a_model_that_keeps_all_tokens_is_the_unslimmed_one(method: str) -> None:
    teacher = tiny_model(stage_blocks=(6,))
    model = SiT(**TINY, method=method, keeping_ratio=1.0).eval()
    model.load_state_dict(teacher.state_dict())
    assert torch.equal(model(images(model)), teacher(images(model)))


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_equal_patches_are_merged_without_a_trace(method: str) -> None:
    """Where all patches are one and the same, without positions, their sizes alone tell how many they were."""
    for options in ({}, {"global_pool": "avg", "reg_tokens": 2}, VIT_PARTS["attention pooling"]):
        plain = plain_vit(**options)
        nn.init.zeros_(plain.pos_embed)
        model = slim(plain, (2, 1, 1, 2), method=method).eval()
        flat = images(model)[:, :, :1, :1].expand(-1, -1, *model.img_size)
        close(model(flat), plain(flat))


def test_what_cannot_be_read_is_refused_by_name() -> None:
    for parts, why in (
        ("parallel blocks", "ParallelScalingBlock blocks"),
        ("differential attention", "DiffAttention in place of plain attention"),
    ):
        with pytest.raises(InputError, match=f"block 0 has {why}; pass --method tsm"):
            slim(plain_vit(**VIT_PARTS[parts]), (2, 2, 2), method=TRANSFORM)
    with pytest.raises(InputError, match="unknown method 'prune'; choose from tsm, transform, merge"):
        slim(plain_vit(), (2, 2, 2), method="prune")


@pytest.mark.parametrize("method", TRAINING_FREE)
def test_gradients_reach_the_weights(method: str) -> None:
    with torch.enable_grad():
        model = randomise(SiT(**TINY, method=method)).train()
        model.grad_checkpointing = True
        model(images(model)).square().mean().backward()
    assert all(block.attn.qkv.weight.grad.abs().sum() > 0 for block in model.blocks)


def test_a_cut_before_the_first_reduction_alone() -> None:
    model = tiny_model(method=MERGE)
    x = images(model)
    close(model.forward_from(1, *model.forward_to(1, x)).logits, model(x))
    with pytest.raises(InputError, match="cut this model before its first reduction"):
        model.forward_to(3, x)
