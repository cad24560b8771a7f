"""Data that is streamed from shards: every picture in every epoch, in an order of its own, shared out over workers and processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sit_deploy.data.datasets import Data
from sit_deploy.errors import InputError
from sit_deploy.processes import World
from tests.helpers.shards import open_shards
from tests.sit_deploy.data.conftest import refusal
from training.loaders import LoaderOptions, Loaders, make_loaders
from training.recipes import Recipe

ALONE = World(0, 1, torch.device("cpu"))
PLAIN = Recipe(
    batch_size=4, mixup=0.0, cutmix=0.0, auto_augment="", color_jitter=0.0, erasing=0.0, repeats=1, flip=0.0,
    min_scale=1.0, min_ratio=1.0,
)  # fmt: skip


def loaders(data: Data, world: World = ALONE, **options: Any) -> Loaders:
    from sit_deploy.preprocessing import Preprocessing

    even = Preprocessing((32, 32), 32, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    return make_loaders(data, PLAIN, even, world, LoaderOptions(**options))


def numbers(batches: Any) -> list[tuple[int, int]]:
    """Return (number, label) of every picture of the batches."""
    found = []
    for images, labels in batches:
        assert images.shape[1:] == (3, 32, 32)
        found += zip(images.mean((1, 2, 3)).round().int().tolist(), labels.tolist(), strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streamed_data_gives_every_picture(workers: int, tmp_path: Path) -> None:
    data = open_shards(tmp_path / "shards", train=(12, 8), validation=(6, 5))
    assert data.streamed and data.classes is None and data.num_classes == 5
    made = loaders(data, workers=workers)
    assert made.order is None and made.steps == 5  # 20 pictures, 4 a step
    assert sorted(numbers(made.val)) == [(i, i % 5) for i in range(11)]
    for epoch in range(2):
        data.train.set_epoch(epoch)
        seen = numbers(made.train)
        assert all(label == number % 5 for number, label in seen)
        assert len(seen) >= 20 and len(seen) % 4 == 0  # what a loop over `steps` needs, in whole batches
        if workers < 2:  # with more, each has shards of its own and takes as many pictures as the others
            assert sorted(number for number, _ in seen) == list(range(20))


def test_streamed_epochs_differ_in_order(tmp_path: Path) -> None:
    data = open_shards(tmp_path / "shards", train=(12, 8), validation=(6, 5))
    made = loaders(data)
    orders = []
    for epoch in range(3):
        data.train.set_epoch(epoch)
        orders.append(numbers(made.train))
    assert orders[0] != orders[1] != orders[2]


def test_streamed_order_follows_from_the_seed(tmp_path: Path) -> None:
    parts = {"train": (12, 8), "validation": (6, 5)}
    orders = [numbers(loaders(open_shards(tmp_path / "shards", seed, **parts)).train) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_there_are_enough_streamed_batches_for_every_step(workers: int, tmp_path: Path) -> None:
    """Pictures of a worker need not fill whole batches: 22 over two workers are 11 each, not 3 batches of 4; and a third has no shard."""
    data = open_shards(tmp_path / "shards", train=(11, 11), validation=(4,))
    made = loaders(data, workers=workers)
    assert made.steps == 5
    assert sum(len(labels) == 4 for _, labels in made.train) >= made.steps


def test_processes_share_streamed_pictures_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes take half the steps that one does, each of shards of its own."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    seen, held_out = [], []
    for rank in range(2):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        data = open_shards(tmp_path / "shards", train=(12, 12), validation=(7, 2))
        made = loaders(data, World(rank, 2, ALONE.device))
        assert made.steps == 3  # 24 pictures, 4 a process
        seen.append({number for number, _ in numbers(made.train)})
        held_out.append(numbers(made.val))
    assert seen[0] | seen[1] == set(range(24)) and not seen[0] & seen[1]
    assert sorted(held_out[0] + held_out[1]) == [(i, i % 5) for i in range(9)]  # each once, though 9 is odd
    assert {len(part) for part in held_out} == {4, 5}
    with pytest.raises(InputError, match="has 2 shards for 3 processes"):
        loaders(data, World(0, 3, ALONE.device))


def test_streamed_data_that_cannot_be_used(tmp_path: Path) -> None:
    assert "pass --num-classes" in refusal("wds/numbers", root=tmp_path)
    data = open_shards(tmp_path / "shards", train=(2, 1), validation=(4,))
    with pytest.raises(InputError, match="3 images are fewer than"):
        loaders(data)
    root = tmp_path / "shards"
    assert "split 'test'" in refusal("wds/numbers", root=root, val_split="test", num_classes=5)
    assert "has one class only" in refusal("wds/numbers", root=root, num_classes=1)
