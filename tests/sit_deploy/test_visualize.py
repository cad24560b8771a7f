from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sit_deploy.errors import InputError
from sit_deploy.visualize import draw, merged_picture, owners, patch_shares, save, weights
from tests.helpers.models import named_model

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 112, 112), np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    return named_model("sit_nano")


def test_every_token_is_a_convex_combination_of_the_patches(model: Any) -> None:
    shares = patch_shares(model, IMAGES)
    assert [share.shape for share in shares] == [(2, kept, model.kept[0]) for kept in model.kept[1:]]
    for share in shares:
        assert (share >= 0).all()
        np.testing.assert_allclose(share.sum(axis=2), 1, rtol=1e-5)


def test_the_first_stage_is_the_assignment_itself_and_the_rest_is_chained(model: Any) -> None:
    first, second, *_ = patch_shares(model, IMAGES)
    with torch.inference_mode():
        tokens = model.embed(torch.from_numpy(IMAGES))
        assignments = []
        for index, block in enumerate(model.blocks):
            tokens = block(tokens)
            if index in model.slim_after:
                tsm = model.tsm[model.slim_after[index]]
                assignments.append(tsm.assignment(tokens[:, 1:]).numpy())
                tokens = torch.cat([tokens[:, :1], tsm(tokens[:, 1:])], dim=1)
    np.testing.assert_allclose(first, assignments[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        second, np.einsum("bij,bjk->bik", assignments[1], assignments[0]), rtol=1e-4, atol=1e-7
    )


def test_a_tsm_that_picks_tokens_is_followed_to_their_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each TSM keeps every other token: the chain must name patches 0, 2, 4, ..., then 0, 4, 8, ..."""
    model = named_model("sit_nano")
    for tsm in model.tsm:

        def pick(x: torch.Tensor, kept: int = tsm.kept) -> torch.Tensor:
            return torch.eye(x.shape[1])[: 2 * kept : 2].expand(len(x), -1, -1)

        monkeypatch.setattr(tsm, "assignment", pick)
    shares = patch_shares(model, IMAGES[:1])
    for times, share in enumerate(shares, 1):
        assert share[0].argmax(axis=1).tolist() == [2**times * i for i in range(share.shape[1])]
        assert sorted(np.unique(share)) == [0, 1]


def test_the_model_is_left_as_it_was(model: Any) -> None:
    patch_shares(model, IMAGES)
    assert not any(tsm._forward_pre_hooks for tsm in model.tsm)


def test_a_model_that_does_not_slim() -> None:
    with pytest.raises(InputError, match="does not slim its tokens"):
        patch_shares(named_model("lvvit_nano"), IMAGES)


def test_owners_and_weights() -> None:
    shares = np.array([[0.5, 0.5, 0, 0], [0, 0.1, 0.2, 0.7]], np.float32)
    assert owners(shares).tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(weights(shares), [1.0, 1.2, 0.4, 1.4])
    np.testing.assert_allclose(weights(np.full((3, 12), 1 / 12)), 1)


def test_patches_of_a_token_share_a_colour_and_lines_part_them() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:] = 100, 200  # two patches of one token; the lower two are another's
    painted = merged_picture(pixels, np.array([5, 5, 2, 2]), (2, 2))
    assert painted.shape == pixels.shape
    assert (painted[:4] == 150).all()
    assert (painted[4] == 255).all() and (painted[5:] == 0).all()


@pytest.mark.slow
def test_a_figure_is_a_picture(tmp_path: Path, model: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)
    shares = [share[0] for share in patch_shares(model, IMAGES[:1])]
    save(draw(pixels, shares, model.grid_size), tmp_path / "tokens.png")
    with Image.open(tmp_path / "tokens.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 800
        assert np.asarray(picture.convert("RGB")).std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.png"]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    class Full:
        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*tokens\.png: No space left on device; choose"):
        save(Full(), tmp_path / "tokens.png")
    assert not list(tmp_path.iterdir())
