"""Rotary positions of tokens that slim: timm's own where nothing slims, the mean of their tokens' behind a TSM."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.forward import SlimmingForward
from sit_deploy.models.rotary import Rotary, places_of, turns_of
from sit_deploy.models.slim import slim
from sit_deploy.models.timm_vit import rotary_table, rotates_halves
from tests.helpers.models import EVA, EVA_VARIANTS, images, randomise, tiny_eva

ROTARY = tuple(name for name, options in EVA_VARIANTS.items() if options.get("use_rot_pos_emb"))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Permuting(nn.Module):
    """In a TSM's place: every slimmed token is one of its tokens, each taken once."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor, with_assignment: bool = False) -> tuple[Tensor, Tensor] | Tensor:
        assignment = torch.eye(len(self.order))[self.order].expand(x.shape[0], -1, -1)
        return (assignment @ x, assignment) if with_assignment else assignment @ x


@pytest.mark.parametrize("variant", EVA_VARIANTS)
def test_an_unslimmed_model_is_timms(variant: str) -> None:
    plain = randomise(Eva(**{**EVA, **EVA_VARIANTS[variant]})).eval()
    model = slim(plain, (6,)).eval()
    assert torch.equal(model(images(model)), plain(images(model)))


@pytest.mark.parametrize("variant", EVA_VARIANTS)
def test_an_assignment_that_permutes_tokens_changes_nothing(variant: str) -> None:
    model = tiny_eva(variant, (1, 2, 3), kept=(10, 10, 10) if "mixed" in variant else (16, 16, 16))
    patches = model.kept[0]
    plain = copy.deepcopy(model)
    plain.slim_after = {}
    orders = (torch.randperm(patches, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    model.tsm = nn.ModuleList(Permuting(order) for order in orders)
    torch.testing.assert_close(model(images(model)), plain(images(model)), rtol=1e-4, atol=1e-5)


def test_without_their_places_permuted_tokens_do_change_it() -> None:
    """So that the test above can fail."""
    model = tiny_eva("EVA-02", (1, 5), kept=(16, 16))
    plain = copy.deepcopy(model)
    plain.slim_after = {}
    model.tsm = nn.ModuleList([Permuting(torch.arange(16).flip(0))])
    pixels = images(model)
    expected = plain(pixels)
    model.rope = copy.deepcopy(model.rope)
    stays = lambda self, assignment: self  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rotary, "merge", stays)
        assert (model(pixels) - expected).abs().max() > 0.01
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)


def rotary_of(model: SlimmingForward) -> Rotary:
    return Rotary(
        rotary_table(model), turns_of(model.rope, model.grid_size), model.grid_size, rotates_halves(model)
    )


@pytest.mark.parametrize("variant", ROTARY)
def test_the_angles_are_those_of_timms_table(variant: str) -> None:
    rotary = rotary_of(tiny_eva(variant, (6,)))
    patches = rotary.grid[0] * rotary.grid[1]
    merged = rotary.merge(torch.eye(patches).expand(2, -1, -1))
    for block in (0, 5):
        found = merged.of_block(block)
        expected = rotary.of_block(block)
        torch.testing.assert_close(found[1], expected.expand_as(found[1]), rtol=0, atol=1e-5)


def test_a_merged_token_is_where_the_mean_of_its_tokens_is() -> None:
    rotary = rotary_of(tiny_eva("DINOv3", (6,)))
    assignment = torch.zeros(1, 2, 16)
    assignment[0, 0, [0, 3]] = 0.5  # both corners of the first row
    assignment[0, 1, 5:7] = torch.tensor([0.25, 0.75])
    merged = rotary.merge(assignment)
    torch.testing.assert_close(merged.places, torch.tensor([[[0, 1.5], [1, 1.75]]]))
    again = merged.merge(torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(again.places, torch.tensor([[[0.5, 1.625]]]))
    sine, cosine = merged.of_block(0).chunk(2, dim=-1)
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones_like(sine))


def test_places_are_rows_and_columns() -> None:
    assert places_of((2, 3), torch.zeros(1)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_autocast_does_not_round_places() -> None:
    rotary = rotary_of(tiny_eva("EVA-02", (6,)))
    assignment = torch.rand(1, 3, 16).softmax(-1)
    exact = rotary.merge(assignment)
    with torch.autocast("cpu", torch.bfloat16):
        found = rotary.merge(assignment)
        table = found.of_block(2)
    assert torch.equal(found.places, exact.places)
    assert torch.equal(table, exact.of_block(2))


def test_learned_frequencies_are_trained_behind_a_tsm_too() -> None:
    model = tiny_eva("RoPE-ViT mixed", (1, 5)).train()
    with torch.enable_grad():
        model(images(model)).sum().backward()
    gradient = model.rope.freqs.grad
    assert gradient is not None
    assert all(gradient[:, block].abs().max() > 0 for block in range(6))


def test_places_are_not_moved_at_random_in_training() -> None:
    """DINOv3's models do that; slimmed tokens would be elsewhere than the patches they are made of."""
    plain = Eva(**{**EVA, **EVA_VARIANTS["DINOv3"], "rope_rescale_coords": 2.0})
    assert plain.rope.aug_active
    slimmed = slim(plain, (3, 3)).train()
    tables = [slimmed._pos_embed(torch.zeros(1, 4, 4, 32))[1] for _ in range(2)]
    assert torch.equal(*tables)
    assert plain.rope.aug_active
    assert slim(plain, (6,)).rope.aug_active


def test_positions_that_are_not_linear_are_refused_where_tokens_slim() -> None:
    plain = Eva(**{**EVA, **EVA_VARIANTS["EVA-02"]})
    plain.rope.pos_embed.add_(0.01)
    with pytest.raises(InputError, match="not linear in row and column; take it unslimmed"):
        slim(plain, (3, 3))
    slim(plain, (6,))
    plain.rope.__class__ = type("Spiral", (nn.Module,), {"get_embed": type(plain.rope).get_embed})
    with pytest.raises(InputError, match="its positions are a Spiral; take it unslimmed"):
        slim(plain, (3, 3))
