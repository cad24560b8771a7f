"""Outliers are where they are said to be, and what is called exact is."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.outlier_plants import BLOCK, CHANNEL, PLANTS, PUBLISHED, train
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import SlimViT
from tests.helpers.models import images, tiny_model, tiny_vit


@pytest.fixture(scope="module", params=["SiT", "DeiT", "slimmed DeiT"])
def model(request: pytest.FixtureRequest) -> SiT | SlimViT:
    if request.param == "SiT":
        return tiny_model()
    return tiny_vit(stage_blocks=(2, 1, 1, 2) if request.param == "slimmed DeiT" else (6,))


def planted(model: SiT | SlimViT, name: str) -> tuple[SiT | SlimViT, torch.Tensor]:
    """Return a planted copy, and the channel (images, tokens) of its residual stream behind the block."""
    changed, seen = copy.deepcopy(model), []
    PLANTS[name].edit(changed, images(model, 64))
    handle = changed.blocks[BLOCK].register_forward_hook(lambda _, __, out: seen.append(out[..., CHANNEL]))
    with torch.no_grad():
        changed(images(model, 64))
    handle.remove()
    return changed, seen[0]


@pytest.mark.parametrize("name", ["none", "norms", "keys"])
def test_what_is_called_exact_changes_no_logit(name: str, model: SiT | SlimViT) -> None:
    changed, _ = planted(model, name)
    with torch.no_grad():
        before, after = (m(images(model, 4, seed=5)) for m in (model, changed))
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)
    assert not PLANTS[name].retrain
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), changed.parameters(), strict=True))
    assert same == (name == "none")


@pytest.mark.parametrize(
    ("name", "tokens", "others"),
    [("all", slice(0, None), None), ("proj", slice(0, None), None), ("class", slice(0, 1), slice(1, None))],
)
def test_which_tokens_have_the_outlier(
    name: str, tokens: slice, others: slice | None, model: SiT | SlimViT
) -> None:
    _, channel = planted(model, name)
    torch.testing.assert_close(channel[:, tokens].median(), torch.tensor(PUBLISHED), rtol=0.02, atol=0)
    if others:
        assert channel[:, others].abs().max() < 0.1 * PUBLISHED


def test_few_tokens_or_images_have_it(model: SiT | SlimViT) -> None:
    for name, share in (("few", 0.02), ("rare", 1 / 64)):
        _, channel = planted(model, name)
        large = channel[:, 1:].abs() > 0.3 * PUBLISHED
        found = large.float().mean() if name == "few" else large.any(1).float().mean()
        assert 0 < found <= 1.5 * share, name
        assert channel[:, 0].abs().max() < 0.1 * PUBLISHED  # never the class token


def test_training_leaves_what_writes_the_outlier(model: SiT | SlimViT) -> None:
    changed, _ = planted(model, "few")
    before = copy.deepcopy(changed.state_dict())
    train(changed, images(model, 8), torch.arange(8) % 7, epochs=1, batch=4)
    moved = {name for name, value in changed.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not [name for name in moved if name.startswith((f"blocks.{BLOCK}.", "patch_embed"))]
