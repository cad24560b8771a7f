"""Pictures to search with."""

from __future__ import annotations

from pathlib import Path

import pytest

from sit_deploy.data.synthetic import synthetic_images


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 pictures, in a folder as they are (`flat`) and in one a class (`labelled`). Do not write into it."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(synthetic_images(16, 112, seed=5)):
        place = folder / "labelled" / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i}.png")
        (folder / "flat").mkdir(exist_ok=True)
        image.save(folder / "flat" / f"{i}.png")
    return folder
