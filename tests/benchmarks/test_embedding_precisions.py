from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from benchmarks.embedding_precisions import CALIBRATED, MEASURED, RESULTS, cut, table


def test_photographs_are_cut_without_loss(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "moon.png")
    tiles = sorted(cut(["moon", "china"], tmp_path, tmp_path / "tiles").iterdir())
    assert [tile.name for tile in tiles] == [
        f"{name}-{i}.png" for name in ("china", "moon") for i in range(9)
    ]
    whole = np.zeros((30, 60, 3), np.uint8)
    for i, tile in enumerate(tiles[9:]):
        top, left = i // 3 * 10, i % 3 * 20
        whole[top : top + 10, left : left + 20] = np.asarray(Image.open(tile))
    np.testing.assert_array_equal(whole, pixels[:30])
    with pytest.raises(click.ClickException, match=r"has no retina\.png or retina\.jpg"):
        cut(["retina"], tmp_path, tmp_path / "more")


def test_the_page_has_what_was_measured() -> None:
    """And no photograph is calibrated on and measured."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (Path(__file__).parents[2] / "docs/outputs.md").read_text(encoding="utf-8")
    assert table(kept["rows"], kept["model"], kept["date"], kept["about"]) in page
    assert not set(CALIBRATED) & set(MEASURED)
    assert {row["precision"] for row in kept["rows"]} == {"fp32", "fp16", "int8"}
