"""`sit-deploy train` as its tests type it: small, and on pictures of which some can be broken."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.helpers.train import PLAIN, words

RECIPE = {**PLAIN, "batch_size": 8, "clip_grad": 1.0}


def line(data: Path, *more: object, model: str = "lvvit_nano", size: int = 48) -> list[object]:
    options = ("--model", model, "--data", data, "--image-size", size, "--workers", 0, "-o", "new/run")
    return ["train", *options, *words(RECIPE), *more]


def damaged_copy(pictures: Path, root: Path, train: int, val: int) -> Path:
    """Copy the pictures and break the first `train` and `val` of them."""
    shutil.copytree(pictures, root)
    for part, count in (("train", train), ("val", val)):
        for path in sorted((root / part).rglob("*.png"))[:count]:
            path.write_bytes(path.read_bytes()[:100])
    return root
