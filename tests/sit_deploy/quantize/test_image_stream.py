from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sit_deploy.data.image_files import list_images
from sit_deploy.data.samples import spread
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import Shard
from sit_deploy.quantize.image_stream import ImageStream, calibration_images, images_key
from tests.helpers.digits import Digits

PREPARE = Preprocessing.for_model(112)


def stream_of(images: list[Any]) -> ImageStream:
    return ImageStream(images, PREPARE, f"{len(images)} images")


def noise(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


def test_spread() -> None:
    assert spread("abcdefghij", 3) == ["a", "d", "g"]
    assert spread("abc", 5) == spread("abc", 3) == ["a", "b", "c"]


def test_a_stream_gives_all_its_images_again_and_again() -> None:
    images = noise(11)
    stream = stream_of(images)
    wanted = np.stack([PREPARE(image) for image in images])
    for _ in range(2):
        arrays = list(stream)
        assert len(arrays) == len(stream) == 2  # what progress is reckoned with
        np.testing.assert_array_equal(np.concatenate(arrays), wanted)
    assert len(np.concatenate(list(stream.spread(3)))) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shards_are_all_images_once(size: int) -> None:
    stream = stream_of(list(range(7)))
    shards = [list(stream.part(Shard(rank, size)).sources) for rank in range(size)]
    assert sorted(itertools.chain(*shards)) == list(range(7))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_how_many(digits: Digits) -> None:
    found = list_images(digits.images)
    few = calibration_images(digits.images, 5, 256, PREPARE)
    assert list(few.sources) == spread(found, 5)
    assert few.description == f"5 of 20 images in {digits.images}"
    assert list(calibration_images(digits.images, None, 256, PREPARE).sources) == found  # all there are
    assert len(calibration_images(digits.images, None, 6, PREPARE).sources) == 6
    with pytest.raises(
        InputError, match=r"has 20 images and --calib-images asks for 21; add images or ask for fewer"
    ):
        calibration_images(digits.images, 21, 256, PREPARE)


def test_the_key_of_images_is_of_what_they_hold(digits: Digits, tmp_path: Path) -> None:
    stream = calibration_images(digits.images, None, 256, PREPARE)
    key = images_key(stream.digests())
    assert images_key(reversed(stream.digests())) == key  # order is no matter
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, path in enumerate(stream.sources):
        (elsewhere / f"{number}.png").write_bytes(path.read_bytes())
    assert images_key(calibration_images(elsewhere, None, 256, PREPARE).digests()) == key
    (elsewhere / "0.png").write_bytes(stream.sources[1].read_bytes())
    assert images_key(calibration_images(elsewhere, None, 256, PREPARE).digests()) != key
    assert images_key(stream_of(noise(2)).digests()) == images_key(stream_of(noise(2)).digests())
