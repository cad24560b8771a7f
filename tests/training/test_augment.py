"""Augmentation policies: every operation at every magnitude, against what Pillow gave before it refused the extremes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sit_deploy.data.datasets import FolderImages, open_data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from tests.helpers.train import RICH, assert_same_run, log_rows, write_photographs
from training import TrainRequest, train
from training.augment import operations, posterize, train_transform
from training.loaders import Augmented, HeldOut, count_damaged, make_loaders
from training.loop import StoppedError
from training.recipes import STUDENTS, Recipe

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")

SEEN = Preprocessing((32, 32), 36)
ALONE = World(0, 1, torch.device("cpu"))
POLICIES = (
    *sorted({recipe.auto_augment for recipe in STUDENTS.values()}),
    *(
        "rand-m0",
        "rand-m10-mstd101",
        "rand-m9-mstd5-mmax30-inc1",
        "rand-tweights-inc1",
        "rand-t3a-inc1",
        "rand-t3aw",
    ),
    *("augmix-m10", "augmix-m3-w4-d2-b1", "original", "originalr-mstd3", "v0-mstd3", "v0r", "3a"),
)


def transform_of(policy: str, on_device: bool = False) -> object:
    return train_transform(replace(Recipe(), auto_augment=policy), SEEN, on_device)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_operation_takes_every_magnitude(policy: str, picture: Image.Image) -> None:
    """Driven directly over its whole range; most of them the policy itself reaches once in thousands of images."""
    found = list(operations(transform_of(policy)))
    assert found
    for operation in found:
        operation.prob, operation.magnitude_std = 1.0, 0
        for magnitude in (*range(-1, 12), operation.magnitude_max or 0, 0.3, 9.99):
            operation.magnitude = magnitude
            assert operation(picture).size == picture.size


@pytest.mark.parametrize("policy", sorted({recipe.auto_augment for recipe in STUDENTS.values()}))
def test_the_recipes_own_policies_more_than_a_thousand_times(policy: str, picture: Image.Image) -> None:
    random.seed(0)
    np.random.seed(0)
    transform = transform_of(policy)
    [chain] = [step for step in transform.transforms if hasattr(step, "ops")]
    black = sum(not np.asarray(chain(picture)).any() for _ in range(1500))
    assert black  # which is where Pillow 13 raised


@pytest.mark.parametrize("bits", range(-5, 9))
def test_posterize_keeps_the_highest_bits(bits: int, picture: Image.Image) -> None:
    """As Pillow did it before it refused 0: the value and a mask, of no bit at all for 0 and below."""
    mask = (0xFF << (8 - max(bits, 0))) & 0xFF
    expected = np.asarray(picture) & np.uint8(mask)
    assert np.array_equal(np.asarray(posterize(picture, bits)), expected)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("nonsense-m9", "is no policy of timm"),
        ("rand-m-5", "is no policy of timm"),
        ("rand-n20-tweights", "cannot be applied to a picture (Cannot take a larger sample"),
        ("augmix-a0", "cannot be applied to a picture (alpha <= 0)"),
        ("rand-n1000000", "chains 1000000 operations; pass at most 100"),
        ("augmix-d5000", "chains 5000 operations; pass at most 100"),
    ],
)
def test_policies_that_no_picture_can_go_through(policy: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        transform_of(policy)
    assert f"--auto-augment '{policy}'" in str(error.value) and words in str(error.value)


# ---------------------------------------------------------------------------------------- one image's fault ends no run


class Fragile:
    """A transform that fails on pictures that begin with a dark pixel, in a way that no list of exceptions has."""

    class BrokenError(Exception):
        pass

    def __init__(self, transform: object) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if sum(image.getpixel((0, 0))) < 250:
            raise self.BrokenError("too dark to work in")
        return self.transform(image)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", train=8, val=3)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.loaders.train_transform",
        lambda *args, **options: Fragile(train_transform(*args, **options)),
    )


def dark(root: Path) -> list[bool]:
    images = open_data(str(root)).train
    return [sum(images[i][0].getpixel((0, 0))) < 250 for i in range(len(images))]


def test_an_image_whose_augmentation_fails_gives_way_to_the_next(photographs: Path) -> None:
    images = open_data(str(photographs)).train
    samples = Augmented(images, Fragile(transform_of("rand-m9-mstd0.5-inc1")), 0, 100)
    plain = Augmented(images, transform_of("rand-m9-mstd0.5-inc1"), 0, 100)
    failing = dark(photographs)
    assert 0 < sum(failing) < len(failing)
    for index in range(len(failing)):
        after = next(
            i % len(failing) for i in range(index, 2 * len(failing)) if not failing[i % len(failing)]
        )
        got, wanted = samples[0, index, index], plain[0, index, after]
        assert torch.equal(got[0], wanted[0]) and got[1] == wanted[1]
    assert samples.damaged.tolist() == failing


def test_too_many_of_them_end_the_run_by_name(photographs: Path) -> None:
    images = open_data(str(photographs)).train
    samples = Augmented(images, Fragile(transform_of("")), 0, 0)
    with pytest.raises(InputError) as error:
        [samples[0, 0, i] for i in range(len(images))]
    message = str(error.value)
    assert message.startswith("1 image cannot be read or augmented, more than --max-damaged 0; the last: ")
    assert "BrokenError: too dark to work in" in message and str(photographs) in message


def test_none_of_them(photographs: Path) -> None:
    def never(_: object) -> None:
        raise MemoryError

    samples = Augmented(open_data(str(photographs)).train, never, 0, 100)
    with pytest.raises(
        InputError, match=r"none of the 16 images can be read or augmented; .* \(MemoryError\)$"
    ):
        samples[0, 0, 3]


def test_held_out_images_that_cannot_be_prepared_are_left_out(photographs: Path) -> None:
    class Unlucky(FolderImages):
        def __getitem__(self, index: int) -> tuple[object, int]:
            return (None if index == 2 else super().__getitem__(index)[0]), 1

    images = open_data(str(photographs)).val
    images.__class__ = Unlucky
    held_out = HeldOut(images, SEEN, 100)
    assert [held_out[i][1] for i in range(6)] == [1, 1, -1, 1, 1, 1]
    assert held_out.damaged.tolist() == [False, False, True, False, False, False]


class Stopper:
    """A reporter that stops the run at its second step."""

    def __init__(self) -> None:
        self.left, self.notes = 2, []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def steps(self, *_: object) -> None:
        import signal

        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGTERM)

    def calibrating(self, *_: object) -> None: ...
    def warn(self, *_: object) -> None: ...
    def evaluating(self, *_: object) -> None: ...
    def epoch(self, *_: object) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("fragile")
def test_a_run_goes_on_resumes_and_counts_them_once(workers: int, photographs: Path, tmp_path: Path) -> None:
    recipe = {**RICH, "batch_size": 8, "epochs": 1, "warmup_epochs": 0, "lr": 0.01}

    def wanted(name: str) -> TrainRequest:
        return TrainRequest(
            "lvvit_nano", str(photographs), tmp_path / name, image_size=32, overrides=tuple(recipe.items()),
            log_every=1, workers=workers, resume=True,
        )  # fmt: skip

    reporter = Stopper()
    reporter.left = 0
    summary = train(wanted("whole"), reporter)
    with pytest.raises(StoppedError):
        train(wanted("stopped"), Stopper())
    assert train(wanted("stopped")).damaged_images == summary.damaged_images > 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    counts = [row["damaged_images"] for row in log_rows(tmp_path / "whole", "epoch")[1:]]
    assert counts == sorted(counts) and counts[-1] == summary.damaged_images <= sum(dark(photographs))
    assert sum("cannot be read or augmented" in text for text in reporter.notes) == 1


def test_streamed_images_are_shown_plain_where_they_cannot_be_augmented(tmp_path: Path) -> None:
    from tests.helpers.shards import open_shards

    data = open_shards(tmp_path / "shards", train=(6,), validation=(3,))
    recipe = replace(Recipe(), batch_size=2, repeats=1, mixup=0.0, cutmix=0.0)
    loaders = make_loaders(data, recipe, SEEN, ALONE)

    def never(_: object) -> None:
        raise ZeroDivisionError

    data.train.transform.transform = never
    images, _ = next(iter(loaders.train))
    assert images.shape == (2, 3, 32, 32) and images.flatten(1).any(1).all()
    assert count_damaged(loaders, ALONE) == 2
    data.val.transform.transform = never
    labels = torch.cat([labels for _, labels in loaders.val])
    assert (labels == -1).all() and len(labels)
    data.train.transform.limit = 0
    with pytest.raises(InputError, match="more than --max-damaged 0; the last: ZeroDivisionError"):
        next(iter(loaders.train))
