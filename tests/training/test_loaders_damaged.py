"""Damaged images: replaced in training, left out of validation, counted, and too many of them refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sit_deploy.data.datasets import open_data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from training.loaders import (
    Augmented,
    HeldOut,
    LoaderOptions,
    Loaders,
    count_damaged,
    make_loaders,
    train_transform,
)
from training.recipes import Recipe

ALONE = World(0, 1, torch.device("cpu"))
# nothing is random but the order
PLAIN = Recipe(
    batch_size=4, mixup=0.0, cutmix=0.0, auto_augment="", color_jitter=0.0, erasing=0.0, repeats=1, flip=0.0,
    min_scale=1.0, min_ratio=1.0,
)  # fmt: skip
BYTES = Preprocessing((16, 16), 16, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


@pytest.fixture
def damaged(make_image_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A data set of 8 images a part, of which one in each is cut off and one in each is no image at all."""
    root = tmp_path / "damaged"
    root.mkdir()
    for part in ("train", "val"):
        make_image_folder(per_class=4).rename(root / part)
        path = root / part / "cat" / "001.png"
        path.write_bytes(path.read_bytes()[:300])
        (root / part / "dog" / "002.jpg").write_bytes(b"no image, but with an image's name")
    return root


def load(root: Path, limit: int = 100, workers: int = 0) -> Loaders:
    return make_loaders(
        open_data(str(root)), PLAIN, BYTES, ALONE, LoaderOptions(workers=workers, max_damaged=limit)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_give_way_in_training_and_are_left_out_of_validation(
    damaged: Path, workers: int
) -> None:
    loaders = load(damaged, workers=workers)
    assert count_damaged(loaders, ALONE) == 0
    for epoch in range(2):
        loaders.order.set_position(epoch)
        labels = torch.cat([labels for _, labels in loaders.train])
        # 001 gives way to 002 of the same class, as does the dog to the last dog
        assert sorted(labels.tolist()) == [0] * 4 + [1] * 4
        assert count_damaged(loaders, ALONE) == 2  # each once, however often it was met
    images, labels = (torch.cat(parts) for parts in zip(*loaders.val, strict=True))
    assert labels.tolist() == [0, -1, 0, 0, 1, 1, -1, 1]
    assert not images[[1, 6]].any() and images[[0, 2, 3, 4, 5, 7]].flatten(1).any(1).all()
    assert count_damaged(loaders, ALONE) == 4


def test_a_damaged_image_is_replaced_by_the_next(damaged: Path) -> None:
    data = open_data(str(damaged))
    transform = train_transform(PLAIN, BYTES, on_device=False)
    samples = Augmented(data.train, transform, 0, 100)
    assert torch.equal(samples[0, 5, 1][0], samples[0, 5, 2][0])
    assert not torch.equal(samples[0, 5, 0][0], samples[0, 5, 2][0])


def test_the_last_image_is_followed_by_the_first(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    for part in ("train", "val"):
        (tmp_path / "d").mkdir(exist_ok=True)
        make_image_folder(per_class=2).rename(tmp_path / "d" / part)
    (tmp_path / "d" / "train" / "dog" / "001.png").write_bytes(b"")
    samples = Augmented(
        open_data(str(tmp_path / "d")).train, train_transform(PLAIN, BYTES, on_device=False), 0, 100
    )
    image, label = samples[0, 0, 3]
    assert label == 0 and torch.equal(image, samples[0, 0, 0][0])


@pytest.mark.parametrize(("part", "workers"), [("train", 0), ("val", 0), ("val", 1)])
def test_too_many_damaged_images_end_the_run_by_name(
    damaged: Path, part: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a loader whose worker has failed waits so many seconds for it to end
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    assert len(list(getattr(load(damaged, limit=2, workers=workers), part))) == 2
    with pytest.raises(InputError) as error:
        list(getattr(load(damaged, limit=1, workers=workers), part))
    message = str(error.value).splitlines()[-1]  # before it, a worker's traceback
    assert "2 images cannot be read, more than --max-damaged 1; the last: " in message
    assert (
        f"{damaged / part / 'cat' / '001.png'}" in message
        or f"{damaged / part / 'dog' / '002.jpg'}" in message
    )
    del error  # and with it the loader
    gc.collect()


def test_no_image_that_can_be_read_does_not_search_for_ever(damaged: Path) -> None:
    for path in (damaged / "train").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 8 images can be read"):
        next(iter(load(damaged).train))


def test_processes_count_a_damaged_image_once(damaged: Path) -> None:
    """Both met image 1, and one of them image 6."""

    class Two(World):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            met = torch.zeros_like(values)
            if values.any():
                met[1] = 1
            return values + met

    loaders = load(damaged)
    held_out = HeldOut(open_data(str(damaged)).val, BYTES, 100)
    _ = held_out[1], held_out[6]
    loaders = replace(loaders, damaged=(torch.zeros(8, dtype=torch.bool), held_out.damaged))
    assert count_damaged(loaders, Two(0, 2, ALONE.device)) == 2
