"""What a program gives as images: every natural form is taken, and what is none is refused with what mends it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from sit_deploy.data.given import is_one, open_source, sources_of
from sit_deploy.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
RGB = PIXELS[..., :3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(np.ascontiguousarray(RGB)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def opened(images: Any) -> list[np.ndarray]:
    return [np.asarray(open_source(source)) for source in sources_of(images)]


def test_whatever_a_program_has_is_the_same_image(path: Path) -> None:
    data, image = path.read_bytes(), Image.open(path)
    several = (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image, RGB, PIXELS)
    for source in several:
        assert is_one(source)
        (found,) = opened(source)
        assert np.array_equal(found, RGB), type(source)
    assert not is_one(list(several))
    with path.open("rb") as stream:
        assert np.array_equal(opened([stream])[0], RGB)


def test_grey_arrays_are_as_grey_pictures() -> None:
    grey = PIXELS[..., 0]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(grey)).convert("RGB"))
    for array in (grey, grey[..., None], np.asfortranarray(grey)):
        assert is_one(array)
        assert np.array_equal(opened(array)[0], expected)
    batch = np.stack([grey, grey])[..., None]
    assert not is_one(batch)
    assert [np.array_equal(found, expected) for found in opened(batch)] == [True, True]


def test_files_are_read_in_order_by_one_thread(path: Path, tmp_path: Path) -> None:
    """Members of one archive share its file, and its place."""
    other = tmp_path / "other.png"
    Image.fromarray(np.ascontiguousarray(RGB[::-1])).save(other)
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.write(path, "a.png")
        archive.write(other, "b.png")
    with zipfile.ZipFile(tmp_path / "both.zip") as archive:
        found = opened(archive.open(name) for name in ("a.png", "b.png", "a.png"))
    assert [np.array_equal(one, RGB) for one in found] == [True, False, True]


def test_a_picture_that_is_there_twice_is_decoded_once(tmp_path: Path) -> None:
    """Pillow decodes a file that was opened when its pixels are asked for, which two threads must not do at once."""
    file = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (700, 700, 3), dtype=np.uint8)).save(file)
    expected = np.asarray(Image.open(file))
    for _ in range(5):
        sources = sources_of([Image.open(file)] * 8)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(open_source, sources):
                assert np.array_equal(np.asarray(found), expected)


def test_pillow_images_of_one_file_are_decoded_in_order_by_one_thread(tmp_path: Path) -> None:
    """Members of a tar file share it, and its place, which Pillow reads from when the pixels are asked for."""
    rng, expected = np.random.default_rng(2), []
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name in map(str, range(6)):
            expected.append(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
            Image.fromarray(expected[-1]).save(tmp_path / name, "png")
            archive.add(tmp_path / name, name)
    with tarfile.open(tmp_path / "all.tar") as archive:
        sources = sources_of([Image.open(archive.extractfile(name)) for name in archive.getnames()])  # type: ignore[arg-type]
    for source, pixels in zip(sources, expected, strict=True):  # the archive is closed
        assert np.array_equal(np.asarray(open_source(source)), pixels)


def test_frames_that_come_one_by_one_in_the_same_memory(tmp_path: Path) -> None:
    """Pillow's iterator gives one image at each of its frames; a camera's buffer is filled again and again."""
    frames = [np.full((8, 9, 3), value, np.uint8) for value in (10, 120, 240)]
    first, *others = map(Image.fromarray, frames)
    first.save(tmp_path / "all.webp", save_all=True, append_images=others, lossless=True)
    first.save(tmp_path / "all.gif", save_all=True, append_images=others)

    def camera() -> Iterator[np.ndarray]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    def socket() -> Iterator[bytearray]:
        buffer = bytearray()
        for frame in frames:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "bmp")  # of the same length each
            buffer[:] = file.getvalue()
            yield buffer

    animations = [ImageSequence.Iterator(Image.open(tmp_path / name)) for name in ("all.webp", "all.gif")]
    for given in (*animations, camera(), socket()):
        found = opened(given)
        assert [int(one[0, 0, 0]) for one in found] == [10, 120, 240], given


class Tensor:
    """As those of PyTorch are recognised."""

    def __dlpack__(self) -> None: ...


class Stored:
    """One picture in a file of arrays, as those of h5py: its rows come one by one."""

    ndim = 3

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(RGB)


class Pipe(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise OSError("it broke")


def text(path: str) -> Any:
    return io.StringIO(path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images were given; pass at least one"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"shape \(0, 4, 4, 3\) has no pixels; leave it out"),
        (np.zeros((4, 0, 3), np.uint8), r"shape \(4, 0, 3\) has no pixels; leave it out"),
        (np.zeros((4, 4, 3), np.float32), r"must be uint8.* got float32 .*; pass \(255 \* array\)\.round\(\)\.astype\(numpy\.uint8\)"),
        (np.zeros((1, 3, 8, 8), np.float32), r"got float32 .*prepared already go to logits\(\)"),
        (np.zeros((4, 4), np.uint16), r"got uint16 .*; pass \(array >> 8\)\.astype\(numpy\.uint8\)"),
        (np.zeros((4, 4), np.int64), r"got int64 .*; pass array\.astype\(numpy\.uint8\) of values from 0 to 255"),
        (np.zeros((4, 4), bool), r"got bool .*; pass array \* numpy\.uint8\(255\)"),
        (np.zeros((3, 8, 8), np.uint8), r"got shape \(3, 8, 8\); pass array\.transpose\(1, 2, 0\)"),
        (np.zeros((5, 3, 8, 8), np.uint8), r"got shape \(5, 3, 8, 8\); pass array\.transpose\(0, 2, 3, 1\)"),
        (np.zeros((5, 8, 8), np.uint8), r"got shape \(5, 8, 8\); pass list\(array\)"),
        (np.zeros((8, 8, 2), np.uint8), r"got shape \(8, 8, 2\); pass array\[:, :, 0\]"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"pass several images as \(n, height, width, 3\)"),
        (np.zeros(8, np.uint8), r"got shape \(8,\); pass several"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], r"several images in a list; pass it alone"),
        ("gone.jpg", "gone.jpg: no such image file; check the path"),
        ("https://example.org/cat.jpg", "cat.jpg: an address and no file; fetch it, and pass its bytes"),
        (b"no picture", "not an image that can be read .*; send the bytes of an image file"),
        (b"", "not an image that can be read"),
        (io.BytesIO(), r"nothing left to read; call its seek\(0\) first"),
        (text("x"), "is open as text; open it with 'rb'"),
        (Pipe(), r"cannot be read \(it broke\); open it again"),
        (Tensor(), r"a Tensor is taken for no picture.*; pass its pixels as a NumPy array.*logits\(\)"),
        (Stored(), r"a Stored of 3 dimensions is taken for no picture; pass numpy\.asarray of it"),
        ([Tensor()], r"a Tensor is taken for no picture"),
        ({"a.jpg"}, "a set of images says not which result is whose; pass a list"),
        ({"a": "a.jpg"}, "a dict of images says not which"),
        ([("a.jpg", 0)], "without labels here; pass the first of each pair"),
        (3, "must be one or a list of a path, .* got int"),
        ([None], "an image must be a path, .*, got NoneType"),
        (Image.new("F", (4, 4)), "32-bit samples"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_no_image_is_refused_with_what_mends_it(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(images)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_closed(path: Path) -> None:
    stream = path.open("rb")
    stream.close()
    with pytest.raises(InputError, match=r"cannot be read \(read of closed file\); open it again with 'rb'"):
        opened(stream)


def test_pillow_images_that_cannot_be_decoded(path: Path, tmp_path: Path) -> None:
    """Pillow says so only when the pixels are asked for: in our hands, in an error of its own."""
    half = tmp_path / "half.png"
    half.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"cannot decode the Pillow image \(.*truncated.*\); open it again"):
        opened(Image.open(half))
    closed = Image.open(path)
    closed.close()
    with pytest.raises(InputError, match="cannot decode the Pillow image"):
        opened([closed])
