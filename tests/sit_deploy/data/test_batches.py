from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.data import batches as module
from sit_deploy.data.batches import batches
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.image_files import list_images
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing, load_image

SMALL = Preprocessing.for_model(32)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 1009 + height).integers(0, 256, shape, np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(width, height))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_batches_keep_order_and_lose_nothing(batch_size: int, make_image_folder) -> None:
    samples = ImageFolder(make_image_folder(classes=("a", "b", "c"), per_class=3)).samples
    calls: list[tuple[int, int]] = []
    got = list(batches(samples, SMALL, batch_size, lambda _, done, of: calls.append((done, of))))

    assert [len(images) for images, _ in got[:-1]] == [batch_size] * (len(got) - 1)
    images = np.concatenate([images for images, _ in got])
    labels = np.concatenate([labels for _, labels in got])
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(images, [SMALL(load_image(path)) for path, _ in samples])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert calls[-1] == (9, 9) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_batches_of_paths_and_of_pictures_yield_their_sources(make_image_folder) -> None:
    paths = list_images(make_image_folder())
    assert [source for _, part in batches(paths, SMALL, 4) for source in part] == paths
    pictures = [picture(40, 50), picture(70, 60)]
    ((images, sources),) = batches(pictures, SMALL, 2)
    assert sources == pictures
    np.testing.assert_array_equal(images[1], SMALL(pictures[1]))


def test_batches_read_ahead_a_bounded_number_of_images(
    make_image_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = list_images(make_image_folder(per_class=30))
    loaded, lock = [], threading.Lock()

    def counting_load(path: Path) -> Image.Image:
        with lock:
            loaded.append(path)
        return load_image(path)

    monkeypatch.setattr(module, "open_source", counting_load)
    stream = batches(paths, SMALL, 4, workers=2)
    for taken in (4, 8):
        next(stream)
        time.sleep(0.2)  # what was queued gets loaded; more than that never may be
        assert taken <= len(loaded) <= taken + 4 + 2
    before = threading.active_count()
    stream.close()
    assert threading.active_count() < before  # an abandoned stream leaves no threads


def test_a_bad_image_in_a_batch_is_named(make_image_folder) -> None:
    root = make_image_folder()
    (root / "dog" / "001.png").write_bytes(b"\x89PNG broken")
    stream = batches(list_images(root), SMALL, 2)
    with pytest.raises(InputError, match=r"dog/001\.png"):
        list(stream)


def test_batches_refuse_bad_arguments_at_once() -> None:
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        batches([picture(8, 8)], SMALL, 0)
    with pytest.raises(InputError, match="no images"):
        batches([], SMALL, 1)


def test_one_of_several_without_a_name_is_told_by_its_place(make_image_folder) -> None:
    prepare = Preprocessing.for_model(32)
    file = next(make_image_folder().rglob("*.jpg"))
    with pytest.raises(InputError, match=r"^image 3 of 3: not an image that can be read"):
        list(batches([file, file.read_bytes(), b"none"], prepare, 2))
    with pytest.raises(InputError, match=r"^not an image"):
        list(batches([b"none"], prepare, 2))
    with pytest.raises(InputError, match=r"^gone\.jpg: no such"):
        list(batches([file, "gone.jpg"], prepare, 2))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_damaged_images_leave_no_hole(batch_size: int, make_image_folder) -> None:
    """Every image keeps its own label, whichever are left out: the first, the last, a whole batch of them."""
    samples = ImageFolder(make_image_folder(classes=("a", "b", "c"), per_class=3)).samples
    for index in (0, 3, 4, 5, 8):
        samples[index][0].write_bytes(b"no picture")
    damaged, steps = DamagedImages(), []
    got = list(
        batches(samples, SMALL, batch_size, lambda _, done, of: steps.append((done, of)), damaged=damaged)
    )
    assert all(len(images) == len(labels) > 0 for images, labels in got)
    whole = [samples[index] for index in (1, 2, 6, 7)]
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in got]), [SMALL(load_image(path)) for path, _ in whole]
    )
    assert np.concatenate([labels for _, labels in got]).tolist() == [label for _, label in whole]
    assert [one.image for one in damaged.found] == [str(samples[index][0]) for index in (0, 3, 4, 5, 8)]
    assert steps[-1] == (9, 9)


def test_a_data_set_whose_first_image_is_damaged() -> None:
    """Its images come with it when they are asked for, and what it says of them names them."""

    class Data:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index in (0, 2):
                raise OSError("broken data stream")
            return picture(40, 50), index

        def describe(self, index: int) -> str:
            return f"image {index} of the data set"

    damaged = DamagedImages()
    ((images, labels),) = batches(Data(), SMALL, 4, damaged=damaged)
    assert len(images) == 2 and labels.tolist() == [1, 3]
    assert [one.reason for one in damaged.found] == [
        "image 0 of the data set: OSError: broken data stream", "image 2 of the data set: OSError: broken data stream",
    ]  # fmt: skip
    with pytest.raises(OSError, match="broken data stream"):
        list(batches(Data(), SMALL, 4))
