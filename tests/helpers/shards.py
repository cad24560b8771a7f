"""Data sets of WebDataset: tar shards with the index that timm reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.data.datasets import Data, open_data
from sit_deploy.data.source import DataSource


def write_shards(root: Path, **parts: tuple[int, ...]) -> None:
    """Write tar shards of so many pictures each, with the index that timm reads; picture i of a part is i all over."""
    root.mkdir(exist_ok=True)
    splits = {}
    for part, sizes in parts.items():
        names, number = [], 0
        for shard, size in enumerate(sizes):
            names.append(f"{part}-{shard}.tar")
            with tarfile.open(root / names[-1], "w") as tar:
                for _ in range(size):
                    picture = io.BytesIO()
                    Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(picture, "png")
                    for ending, content in (("png", picture.getvalue()), ("cls", str(number % 5).encode())):
                        entry = tarfile.TarInfo(f"{number:04}.{ending}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
                    number += 1
        splits[part] = {
            "name": part, "num_samples": number, "filenames": names, "shard_lengths": list(sizes),
        }  # fmt: skip
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


def open_shards(root: Path, seed: int = 0, **parts: tuple[int, ...]) -> Data:
    """Write shards and open them as a data set of five classes; skip the test where WebDataset is not installed."""
    pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    write_shards(root, **parts)
    return open_data(DataSource("wds/numbers", root, num_classes=5, seed=seed))
