from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from sit_deploy.errors import InputError
from sit_deploy.token_pictures import FORMATS, ROWS, draw, save, shown
from sit_deploy.visualize import (
    alike_note,
    boundaries,
    gathered,
    mean_colours,
    owners,
    patch_shares,
    weights,
)
from tests.helpers.models import named_model

HREF = "{http://www.w3.org/1999/xlink}href"
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


def test_a_token_is_made_of_as_many_patches_as_have_a_share() -> None:
    shares = np.array([[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0.25] * 4, [0.97, 0.01, 0.01, 0.01]], np.float32)
    np.testing.assert_allclose(gathered(shares)[:3], [1, 2, 4], rtol=1e-6)
    assert 1 < gathered(shares)[3] < 1.3


def test_tokens_that_gather_everything_alike_are_told_of() -> None:
    sharp, rng = np.eye(8, 16, dtype=np.float32), np.random.default_rng(0)
    flat = rng.uniform(0.9, 1.1, (4, 16)).astype(np.float32)
    flat /= flat.sum(axis=1, keepdims=True)
    assert alike_note([sharp]) is None
    note = alike_note([sharp, flat])
    assert note is not None and note.startswith("from stage 3 on") and "(16 of 16" in note


def test_lines_stand_where_the_token_changes() -> None:
    owner = np.array([0, 0, 1, 0, 2, 1])  # 0 0 1 / 0 2 1
    lines = {tuple(map(tuple, line.tolist())) for line in boundaries(owner, (2, 3))}
    assert lines == {((2, 0), (2, 1)), ((1, 1), (1, 2)), ((2, 1), (2, 2)), ((1, 1), (2, 1))}
    assert boundaries(np.zeros(6, int), (2, 3)).shape == (0, 2, 2)


def test_patches_of_a_token_share_a_colour() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:] = 100, 200  # two patches of one token; the lower two are another's
    colours = mean_colours(pixels, np.array([5, 5, 2, 2]), (2, 2))
    assert colours.shape == (2, 2, 3) and (colours[0] == 150).all() and (colours[1] == 0).all()


@pytest.mark.parametrize(("side", "patches"), [(374, 36), (374, 14), (27, 14), (1, 7), (5, 7), (112, 7)])
def test_a_patch_has_the_mean_of_its_own_pixels_wherever_its_edges_fall(side: int, patches: int) -> None:
    places = np.broadcast_to(np.arange(side) * (255 / max(side - 1, 1)), (side, side))
    picture = np.stack([places, places.T, np.full((side, side), 90)], -1).round().astype(np.uint8)
    # exact means, by as many copies of a pixel as there are patches: down, then across
    rows = picture.astype(float).repeat(patches, axis=0).reshape(patches, side, side, 3).mean(axis=1)
    exact = rows.repeat(patches, axis=1).reshape(patches, patches, side, 3).mean(axis=2)
    colours = mean_colours(picture, np.arange(patches**2), (patches, patches))
    assert np.abs(colours - exact).max() <= 0.51


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_sample_image("china.jpg")


@pytest.mark.slow
def test_a_figure_is_a_picture_in_each_format(tmp_path: Path, model: Any, photograph: np.ndarray) -> None:
    shares = [share[0] for share in patch_shares(model, IMAGES[:1])]
    picture = photograph[:400, :400]
    figure = draw(picture, shares, model.grid_size, tuple(ROWS))
    # of each row a panel for the patches and for each stage, and two colour bars
    assert len(figure.axes) == 4 * 4 + 2
    for kind in FORMATS:
        save(figure, tmp_path / f"tokens.{kind}", 400)
    with Image.open(tmp_path / "tokens.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 1500
        assert np.asarray(drawn.convert("RGB")).std() > 10
    vector = ElementTree.parse(tmp_path / "tokens.svg")
    images = [e for e in vector.iter("{http://www.w3.org/2000/svg}image")]
    # the photograph and each stage's outlines over it have the photograph's own pixels, and are not blurred
    embedded = [Image.open(BytesIO(b64decode(e.attrib[HREF].split(",", 1)[1]))) for e in images]
    assert [image.size for image in embedded].count((400, 400)) == 4
    whole = next(image for image in embedded if image.size == (400, 400))
    assert (np.asarray(whole.convert("RGB")) == picture).all()
    assert (tmp_path / "tokens.pdf").read_bytes().startswith(b"%PDF")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {f"tokens.{kind}" for kind in FORMATS}
    for kind in ("png", "svg"):
        save(figure, tmp_path / f"tokens.{kind}", 400)
        assert (tmp_path / f"tokens.{kind}").read_bytes() == first[f"tokens.{kind}"]


def test_a_large_photograph_is_drawn_smaller() -> None:
    assert shown(Image.new("RGB", (5000, 2500))).shape == (1024, 2048, 3)
    assert shown(Image.new("RGB", (300, 200))).shape == (200, 300, 3)


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    class Full:
        axes = ()

        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*tokens\.png: No space left on device; choose"):
        save(Full(), tmp_path / "tokens.png", 100)
    assert not list(tmp_path.iterdir())
