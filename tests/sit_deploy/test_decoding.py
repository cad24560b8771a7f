"""Files and bytes of images: what is decoded and how, and what is refused with a line that names it."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import (
    FORMATS,
    Preprocessing,
    decode_image,
    is_image,
    load_image,
)
from tests.helpers.noise_pictures import picture


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"),
        ("L", ".png"),
        ("1", ".png"),
        ("P", ".png"),
        ("LA", ".png"),
        ("RGBA", ".png"),
        ("RGB", ".jpg"),
        ("CMYK", ".jpg"),
        ("L", ".jpg"),
        ("RGB", ".webp"),
        ("CMYK", ".tif"),
    ],
)
def test_every_mode_decodes_as_torchvisions_loader_does(mode: str, suffix: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / f"image{suffix}"
    picture(40, 31).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode  # else the file is no test of this mode
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(pil_loader(path)))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_keeps_its_range(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values).convert("I" if suffix == ".pgm" else "I;16").save(path)
    got = np.asarray(load_image(path))
    assert got.shape == (1, 6, 3)
    assert got[0, :, 1].tolist() == [0, 0, 1, 127, 128, 255]


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_warns_of_nothing_and_keeps_its_colours(tmp_path: Path) -> None:
    image = picture(40, 30).quantize(16)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "seen through.png", transparency=bytes(range(0, 256, 16)))
    plain, seen = (np.asarray(load_image(tmp_path / f"{name}.png")) for name in ("plain", "seen through"))
    assert np.array_equal(plain, seen)


def test_32_bit_samples_are_refused_by_file_name(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(InputError, match=r"float\.tif.*32-bit"):
        load_image(path)


@pytest.mark.parametrize("cut", [10, 300, 1000])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_names_its_file(cut: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"half{suffix}"
    picture(60, 50).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=rf"half\{suffix}: .*(remove|replace)"):
        load_image(path)


def test_a_damaged_png_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    picture(60, 50).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png: cannot decode"):
        load_image(path)


def test_an_image_too_large_to_trust_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    picture(60, 50).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        InputError, match=r"bomb\.png: the image has more than the 200 pixels that are decoded"
    ):
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("sit_deploy.preprocessing.MAX_PIXELS", 2999)
    with pytest.raises(
        InputError, match=r"bomb\.png: the image of 60 x 50 pixels has more than the 2,999 pixels"
    ):
        load_image(path)


def sealed(png: bytes) -> bytes:
    """The same with every chunk's check sum made to fit, as far as there are chunks."""
    made, at = bytearray(png), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


@pytest.mark.parametrize(
    ("ending", "form", "before"),
    [("png", ">II", b"IHDR"), ("gif", "<HH", b"GIF87a"), ("bmp", "<II", b"\x28\0\0\0"), ("jpg", ">HH", b"\xff\xc0\0\x11\x08")],
)  # fmt: skip
def test_a_small_file_of_a_huge_image_is_refused_before_its_pixels(
    ending: str, form: str, before: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"huge.{ending}"
    picture(16, 16).save(path)
    start, end = path.read_bytes().split(before, 1)
    end = struct.pack(form, 60000, 60000) + end[struct.calcsize(form) :]
    made = start + before + end
    path.write_bytes(sealed(made) if ending == "png" else made)
    with pytest.raises(InputError, match=rf"huge\.{ending}: the image has more than"):
        load_image(path)


def test_what_takes_too_much_memory_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    picture(60, 50).save(path)

    def fail(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("sit_deploy.preprocessing.to_rgb", fail)
    with pytest.raises(InputError, match=r"large\.png: too little memory to decode 60 x 50 pixels"):
        load_image(path)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "ICNS", "DDS", "MSP"])
def test_what_is_rarely_an_image_is_not_decoded(kind: str, tmp_path: Path) -> None:
    picture(16, 16).convert("1" if kind == "MSP" else "RGB").save(tmp_path / "a.jpg", kind)
    shutil.copy(tmp_path / "a.jpg", tmp_path / "a.other")
    for name in ("a.jpg", "a.other"):
        with pytest.raises(InputError, match=rf"{name}: not an image that can be read \(JPEG, PNG"):
            load_image(tmp_path / name)
        assert not is_image(tmp_path / name)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_an_image_is_decoded_whatever_its_name(kind: str, tmp_path: Path) -> None:
    picture(40, 30).save(tmp_path / "image", kind)
    assert is_image(tmp_path / "image")
    assert load_image(tmp_path / "image").size == (40, 30)


def test_pipes_devices_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InputError, match=f"{path}: no file but a folder, pipe or device"):
            load_image(path)
    with pytest.raises(InputError, match="no such image file"):
        load_image("a\0b")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif", "avif"])
def test_of_many_frames_the_first_counts(ending: str, tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (20, 10), (40 * i, 0, 0)) for i in range(6))
    path = tmp_path / f"many.{ending}"
    first.save(path, save_all=True, append_images=others)
    with Image.open(path) as image:
        assert image.n_frames == 6
    assert int(np.asarray(load_image(path)).max()) <= 2


def mutations(data: bytes, count: int) -> Iterator[bytes]:
    """Damaged copies: bytes changed, most of them near the front, parts cut, doubled and zeroed."""
    rng = np.random.default_rng(len(data))
    for i in range(count):
        made = bytearray(data)
        for at in rng.integers(0, rng.choice([64, 256, len(data)]), rng.integers(1, 9)):
            made[at % len(made)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        at, length = (int(n) for n in rng.integers(0, len(data), 2))
        if i % 4 == 1:
            del made[at:]
        elif i % 4 == 2:
            made[at:at] = made[at : at + length]
        elif i % 8 == 3:
            made[at : at + length] = bytes(len(made[at : at + length]))
        yield sealed(bytes(made)) if data.startswith(b"\x89PNG") and i % 3 else bytes(made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [*FORMATS, "MPO", "TIFF lzw", "TIFF jpeg", "PNG palette", "PNG 16", "BMP 1", "PPM 16"]
)
def test_damaged_images_are_refused_or_decoded_and_nothing_else(kind: str) -> None:
    image, (name, how, *_) = picture(24, 18), (*kind.split(), "")
    image = {"palette": image.convert("P"), "1": image.convert("1")}.get(how, image)
    if how == "16":
        image = Image.fromarray(np.arange(432, dtype=np.uint16).reshape(18, 24) * 150)
        image = image.convert("I") if name == "PPM" else image
    exif = Image.Exif()
    exif[0x0112] = 6
    options = (
        {"compression": {"lzw": "tiff_lzw", "jpeg": "jpeg"}[how]}
        if name == "TIFF" and how
        else {"exif": exif}
    )
    out = io.BytesIO()
    image.save(out, name, **options)
    ours = Preprocessing((8, 8), 10, orientation="exif")
    refused = 0
    for data in mutations(out.getvalue(), 150):
        try:
            ours(decode_image(data))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 0 < refused < 150


def test_a_missing_image_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: no such image file"):
        load_image(tmp_path / "gone.jpg")


def test_what_is_decoded_from_bytes_is_what_is_decoded_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    picture(61, 37).save(path)
    assert np.array_equal(decode_image(path.read_bytes()), load_image(path))


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 but nothing after it"])
def test_bytes_that_are_no_image(data: bytes) -> None:
    with pytest.raises(InputError, match="send"):
        decode_image(data)


def test_bytes_of_a_truncated_image() -> None:
    whole = io.BytesIO()
    picture(61, 37).save(whole, "png")
    with pytest.raises(InputError, match="cannot decode the image"):
        decode_image(whole.getvalue()[:-2000])
