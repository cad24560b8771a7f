"""Images that two sets have in common."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.overlap import count_same_files


def test_images_that_were_calibrated_on(tmp_path: Path, make_image_folder: Callable[..., Path]) -> None:
    """They are the same file by whatever name: a link of either kind, another way to the folder."""
    samples = ImageFolder(make_image_folder(("cat", "dog"), per_class=2)).samples
    (tmp_path / "soft.jpg").symlink_to(samples[0][0])
    (tmp_path / "hard.jpg").hardlink_to(samples[1][0])
    shutil.copy(samples[2][0], tmp_path / "copy.jpg")
    files = [tmp_path / name for name in ("soft.jpg", "hard.jpg", "copy.jpg", "none.jpg")]
    assert count_same_files([*files, samples[3][0]], samples) == 3
    assert count_same_files([Image.new("RGB", (8, 8))], samples) == 0
