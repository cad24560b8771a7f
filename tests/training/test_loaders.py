"""The order of images, their augmentation, damaged ones, and what evaluation looks at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sit_deploy.data.datasets import ArrayImages, Data, open_data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from training.augment import make_mixing
from training.loaders import Augmented, LoaderOptions, TrainOrder, make_loaders, train_transform
from training.recipes import Recipe

ALONE = World(0, 1, torch.device("cpu"))
# nothing is random but the order
PLAIN = Recipe(
    batch_size=4, mixup=0.0, cutmix=0.0, auto_augment="", color_jitter=0.0, erasing=0.0, repeats=1, flip=0.0,
    min_scale=1.0, min_ratio=1.0,
)  # fmt: skip
BYTES = Preprocessing((16, 16), 16, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def ranks(size: int) -> list[World]:
    return [World(rank, size, ALONE.device) for rank in range(size)]


# ------------------------------------------------------------------------------------------------------------ order


def keys(
    images: int,
    recipe: Recipe,
    world: World = ALONE,
    accumulate: int = 1,
    epoch: int = 0,
    start: int = 0,
    seed: int = 0,
) -> list[list[tuple[int, int, int]]]:
    order = TrainOrder(images, recipe, accumulate, world.shard, seed)
    order.set_position(epoch, start)
    batches = list(order)
    assert len(batches) == len(order)
    return batches


def test_every_image_comes_once_an_epoch() -> None:
    for epoch in range(3):
        batches = keys(22, PLAIN, epoch=epoch)
        assert [len(batch) for batch in batches] == [4] * 5
        found = [key for batch in batches for key in batch]
        assert [key[0] for key in found] == [epoch] * 20
        assert [key[1] for key in found] == list(range(20))  # a place for each, so a seed for each
        images = [key[2] for key in found]
        assert len(set(images)) == 20 and set(images) <= set(range(22)) and images != sorted(images)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        [key[2] for batch in keys(20, PLAIN, epoch=epoch, seed=seed) for key in batch]
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_repeated_augmentation_as_published() -> None:
    """Each image three times running, and as many views an epoch as there are images: a third of them, thrice."""
    batches = keys(24, replace(PLAIN, repeats=3))
    images = [key[2] for batch in batches for key in batch]
    assert len(images) == 24
    assert images[::3] == images[1::3] == images[2::3]
    assert set(Counter(images).values()) == {3} and len(set(images)) == 8


def test_views_of_an_image_fall_on_different_processes() -> None:
    recipe = replace(PLAIN, repeats=3, batch_size=2)
    parts = [[key[2] for batch in keys(24, recipe, world) for key in batch] for world in ranks(3)]
    assert parts[0] == parts[1] == parts[2] and len(set(parts[0])) == len(parts[0]) == 8


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_a_step_has_the_same_images_however_many_processes_share_it(size: int, accumulate: int) -> None:
    """12 images a step: of one process, of `size`, and in `accumulate` passes."""
    each = replace(PLAIN, batch_size=12 // (size * accumulate))
    alone = keys(40, replace(PLAIN, batch_size=12), epoch=2)
    parts = [keys(40, each, world, accumulate, epoch=2) for world in ranks(size)]
    assert len(alone) == 3 and {len(part) for part in parts} == {3 * accumulate}
    for step, whole in enumerate(alone):
        passes = range(step * accumulate, (step + 1) * accumulate)
        together = [key for part in parts for i in passes for key in part[i]]
        assert sorted(together) == sorted(whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_epoch_is_the_rest_of_the_same_one(accumulate: int) -> None:
    whole = keys(40, PLAIN, ranks(2)[1], accumulate, epoch=3)
    for step in range(5 // accumulate):
        assert keys(40, PLAIN, ranks(2)[1], accumulate, epoch=3, start=step) == whole[step * accumulate :]


def test_fewer_images_than_a_step_takes() -> None:
    with pytest.raises(
        InputError, match=r"7 images are fewer than the 8 of one step; pass a smaller --batch-size$"
    ):
        TrainOrder(7, PLAIN, 1, ranks(2)[0], 0)
    with pytest.raises(InputError, match=r"7 images .* the 8 .* smaller --batch-size or --accumulate$"):
        TrainOrder(7, PLAIN, 2, ALONE, 0)
    assert TrainOrder(8, PLAIN, 2, ALONE, 0).steps == 1


# ----------------------------------------------------------------------------------------------------- augmentation


def pictures(count: int = 12, side: int = 24) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)
    return ArrayImages(pixels, np.arange(count) % 3)


def a_data(train: Sequence[Any], val: Sequence[Any] | None = None) -> Data:
    return Data("pictures", train, train if val is None else val, None, 3)


RANDOM = replace(
    PLAIN, auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, flip=0.5, min_scale=0.1, min_ratio=0.75, rotation=20.0,
    repeats=2,
)  # fmt: skip


def test_augmentation_follows_from_the_place_alone() -> None:
    """The same with no worker and with two, in any order, and whatever was drawn in between."""
    made = [
        make_loaders(a_data(pictures()), RANDOM, BYTES, ALONE, LoaderOptions(workers=workers, seed=5))
        for workers in (0, 2)
    ]
    for loaders in made:
        loaders.order.set_position(1)
    torch.manual_seed(1)
    alone = list(made[0].train)
    torch.manual_seed(2)
    with_workers = list(made[1].train)
    made[0].order.set_position(1, start=2)
    rest = list(made[0].train)
    assert len(alone) == 3 and len(rest) == 1
    for batches in (with_workers, alone[:2] + rest):
        for (images, labels), (others, theirs) in zip(alone, batches, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, theirs)


def test_workers_live_through_epochs_and_follow_the_position() -> None:
    loaders = make_loaders(a_data(pictures()), RANDOM, BYTES, ALONE, LoaderOptions(workers=2))
    alone = make_loaders(a_data(pictures()), RANDOM, BYTES, ALONE)
    for epoch, start in ((0, 0), (1, 1), (0, 2)):
        for made in (loaders, alone):
            made.order.set_position(epoch, start)
        for (images, _), (others, _) in zip(loaders.train, alone.train, strict=True):
            assert torch.equal(images, others)


def test_views_differ_between_places_epochs_and_seeds() -> None:
    transform = train_transform(RANDOM, BYTES, on_device=False)
    dataset, other = (Augmented(pictures(), transform, seed, 0) for seed in (0, 1))
    views = [dataset[0, 6, 4][0], dataset[0, 7, 4][0], dataset[1, 6, 4][0], other[0, 6, 4][0]]
    assert torch.equal(views[0], dataset[0, 6, 4][0])
    for i, view in enumerate(views):
        assert not any(torch.equal(view, later) for later in views[i + 1 :])


def test_a_plain_transform_scales_and_normalises() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    whole = np.asarray(picture).transpose(2, 0, 1) / 255
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    preprocessing = Preprocessing((16, 16), 16, mean=tuple(mean), std=tuple(std))
    made = train_transform(PLAIN, preprocessing, on_device=False)(picture)
    expected = (whole - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)
    # on a GPU the loader normalises, so the transform leaves bytes
    raw = train_transform(PLAIN, preprocessing, on_device=True)(picture)
    assert raw.dtype == torch.uint8
    np.testing.assert_array_equal(raw, np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", ["exif", "stored"])
def test_pictures_are_turned_in_training_where_they_are_in_evaluation(orientation: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    preprocessing = replace(BYTES, orientation=orientation)
    expected = preprocessing.pixels(picture)
    assert (expected.tolist() == np.asarray(picture).tolist()) == (orientation == "stored")
    raw = train_transform(PLAIN, preprocessing, on_device=True)(picture)
    np.testing.assert_array_equal(raw, expected.transpose(2, 0, 1))


def run_transform(recipe: Recipe, image: Image.Image, times: int = 40) -> list[np.ndarray]:
    transform = train_transform(recipe, BYTES, on_device=False)
    random.seed(0)
    torch.manual_seed(0)
    return [transform(image).numpy() for _ in range(times)]


def test_flip_is_left_to_right_and_as_often_as_asked() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    upright = np.asarray(picture).transpose(2, 0, 1)

    def flipped(recipe: Recipe) -> list[bool]:
        found = []
        for view in run_transform(recipe, picture):
            found.append(bool(np.allclose(view, upright[..., ::-1], atol=1e-3)))
            assert found[-1] or np.allclose(view, upright, atol=1e-3)
        return found

    assert not any(flipped(PLAIN))
    assert 8 < sum(flipped(replace(PLAIN, flip=0.5))) < 32


def test_rotation_is_within_its_limit_and_before_the_crop() -> None:
    """A bar across the middle tips by the angle; corners that a rotation leaves empty are black, and are cropped."""
    bar = np.zeros((65, 65, 3), np.uint8)
    bar[30:35] = 255
    wide = replace(BYTES, size=(65, 65), resize=65)
    angles = []
    transform = train_transform(replace(PLAIN, rotation=12.0), wide, on_device=False)
    torch.manual_seed(0)
    for _ in range(40):
        view = transform(Image.fromarray(bar)).numpy()[0]
        ends = [np.average(np.arange(65), weights=view[:, column] + 1e-9) for column in (10, 54)]
        angles.append(np.degrees(np.arctan((ends[1] - ends[0]) / 44)))
    assert max(np.abs(angles)) < 12.5 and min(angles) < -6 and max(angles) > 6

    white = Image.fromarray(np.full((65, 65, 3), 255, np.uint8))

    def whole(recipe: Recipe) -> int:
        return sum(bool((view > 250).all()) for view in run_transform(recipe, white))

    assert whole(PLAIN) == 40
    # at 45 degrees and less nearly every corner is empty, and small crops miss the corners more often than not
    assert whole(replace(PLAIN, rotation=45.0)) < 4
    assert whole(replace(PLAIN, rotation=45.0, min_scale=0.02)) > 8


def test_erasing_leaves_a_rectangle_of_noise_in_so_many_images() -> None:
    white = Image.fromarray(np.full((16, 16, 3), 255, np.uint8))

    def erased(share: float) -> int:
        hit = 0
        for view in run_transform(replace(PLAIN, erasing=share), white):
            changed = (view < 254).any(0)
            rows, columns = changed.any(1), changed.any(0)
            assert changed[np.ix_(rows, columns)].all()  # one rectangle, whole
            hit += bool(changed.any())
        return hit

    assert erased(0.0) == 0
    assert 8 < erased(0.5) < 32


def test_crops_keep_the_share_asked_for() -> None:
    """A ramp from left to right: what is left of it is the share of the width."""
    ramp = Image.fromarray(
        np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    )
    spans = [
        (view[0].max() - view[0].min()) / 255 for view in run_transform(replace(PLAIN, min_scale=0.49), ramp)
    ]
    assert 0.6 < min(spans) < 0.8 and max(spans) > 0.85  # sides from 0.7 to 1


def test_an_unknown_policy_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"--auto-augment 'nonsense'[^\n]*$"):
        train_transform(replace(PLAIN, auto_augment="nonsense"), BYTES, on_device=False)


# --------------------------------------------------------------------------------------------------- mixing of images


def test_without_mixing_targets_are_smoothed_and_images_left_alone() -> None:
    images, labels = torch.randn(3, 3, 4, 4), torch.tensor([0, 2, 1])
    mixed, targets = make_mixing(replace(PLAIN, smoothing=0.1), 4, torch.device("cpu"))(images, labels)
    assert torch.equal(mixed, images)
    # (1 - s) on the class, and s spread over all four
    expected = torch.full((3, 4), 0.025)
    expected[torch.arange(3), labels] = 0.925
    torch.testing.assert_close(targets, expected)


def test_mixup_mixes_pairs_and_their_targets_alike() -> None:
    recipe = replace(PLAIN, mixup=0.8, smoothing=0.0)
    labels = torch.arange(4)
    images = (
        torch.eye(4).view(4, 1, 1, 4).expand(4, 3, 4, 4).clone()
    )  # an image is the one-hot code of its label
    np.random.seed(0)
    mixed, targets = make_mixing(recipe, 4, torch.device("cpu"))(images.clone(), labels)
    torch.testing.assert_close(mixed[:, 0, 0], targets, rtol=0, atol=1e-6)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert (targets.max(1).values < 0.999).all()


def test_cutmix_takes_the_share_of_the_area() -> None:
    recipe = replace(PLAIN, cutmix=1.0, smoothing=0.0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
    np.random.seed(3)
    mixed, targets = make_mixing(recipe, 4, torch.device("cpu"))(images.clone(), torch.arange(4))
    assert not torch.equal(mixed, images)
    for i in range(4):
        own = (mixed[i] == i).float().mean().item()
        assert targets[i, i].item() == pytest.approx(own, abs=1e-6)
        assert targets[i, 3 - i].item() == pytest.approx(1 - own, abs=1e-6)


# --------------------------------------------------------------------------------------------------------- held out


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_what_the_deployed_model_will(
    workers: int, make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Every pixel: not square, larger and smaller than the input, grey and with transparency."""
    for part in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        make_image_folder(per_class=3, size=(48, 31)).rename(tmp_path / "data" / part)
    held_out = tmp_path / "data" / "val"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 77), np.uint8)).save(
        held_out / "cat" / "grey.png"
    )
    Image.new("RGBA", (30, 30), (200, 100, 50, 10)).save(held_out / "dog" / "clear.png")
    preprocessing = Preprocessing.for_model(32)
    data = open_data(str(tmp_path / "data"))
    seen = list(
        make_loaders(
            data, replace(PLAIN, batch_size=3), preprocessing, ALONE, LoaderOptions(workers=workers)
        ).val
    )
    images, labels = torch.cat([b[0] for b in seen]), torch.cat([b[1] for b in seen])
    paths = sorted(held_out.glob("*/*"))
    assert len(paths) == 8 and labels.tolist() == [0] * 4 + [1] * 4
    expected = np.stack([preprocessing(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(images.numpy(), expected)


def test_processes_share_the_held_out_images_each_once() -> None:
    data = a_data(pictures(12), pictures(7))
    whole = torch.cat([images for images, _ in make_loaders(data, PLAIN, BYTES, ALONE).val])
    parts = [torch.cat([images for images, _ in make_loaders(data, PLAIN, BYTES, w).val]) for w in ranks(3)]
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    key = [image.numpy().tobytes() for image in whole]
    assert sorted(image.numpy().tobytes() for part in parts for image in part) == sorted(key)


def test_a_data_set_without_images() -> None:
    empty = ArrayImages(np.zeros((0, 8, 8), np.uint8), np.zeros(0, int))
    with pytest.raises(InputError, match="pictures has no images to train on"):
        make_loaders(a_data(empty, pictures()), PLAIN, BYTES, ALONE)
    with pytest.raises(InputError, match="pictures has no images to validate on"):
        make_loaders(a_data(pictures(), empty), PLAIN, BYTES, ALONE)
