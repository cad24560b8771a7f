"""Odd pictures are the same to Python, to Triton's decoding model and to the C++ library, as docs/bundle.md says in its table."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from sklearn.datasets import load_sample_image

from sit_deploy.bundle import load_bundle
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import Programs
from tests.engines.cpp.manifests import rewrite
from tests.helpers.triton_decoding import decoding_model

PAGE = Path(__file__).parents[3] / "docs/bundle.md"
SIDE = 150


def photograph() -> Image.Image:
    """A part of a photograph, wider than high, in which every turn and every channel shows."""
    return Image.fromarray(load_sample_image("china.jpg")[60 : 60 + SIDE, 100:320])


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(turn: int) -> Image.Exif:
    said = Image.Exif()
    said[0x0112] = turn
    return said


def alpha(image: Image.Image) -> Image.Image:
    """The same with a transparency that hides much of it."""
    shade = Image.linear_gradient("L").resize(image.size)
    with_alpha = image.convert("RGBA" if image.mode == "RGB" else "LA")
    with_alpha.putalpha(shade)
    return with_alpha


def wide(image: Image.Image) -> np.ndarray:
    """Its grey values in 16 bits, (H, W), with something in the low bytes."""
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    return grey * 257 - np.arange(grey.size, dtype=np.uint16).reshape(grey.shape) % 200 * (grey > 0)


def colour_of_16_bits(image: Image.Image) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    values = (np.asarray(image).astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def frames(form: str, **options: Any) -> bytes:
    others = [Image.new("RGB", photograph().size, colour) for colour in ("red", "blue")]
    return saved(photograph(), form, save_all=True, append_images=others, **options)


# by the words of the table: its files
MADE: dict[str, Callable[[], list[tuple[str, bytes]]]] = {
    "turned by EXIF": lambda: [
        (f"{form}-{turn}", saved(photograph(), form, exif=exif(turn)))
        for form in ("jpeg", "png", "webp")
        for turn in (2, 3, 6, 8)
    ],
    "of a palette, with a transparent colour": lambda: [
        ("palette.png", saved(photograph().quantize(16), "png", transparency=3)),
        ("palette-alpha.png", saved(photograph().quantize(16), "png", transparency=bytes(range(0, 256, 16)))),
        ("colour.png", saved(photograph(), "png", transparency=(255, 255, 255))),
    ],
    "with transparency": lambda: [
        ("rgba.png", saved(alpha(photograph()), "png")),
        ("la.png", saved(alpha(photograph().convert("L")), "png")),
        ("rgba.webp", saved(alpha(photograph()), "webp", quality=80)),
    ],
    "grey, or black and white": lambda: [
        ("grey.jpg", saved(photograph().convert("L"), "jpeg")),
        ("grey.png", saved(photograph().convert("L"), "png")),
        ("grey2.png", saved(photograph().convert("L").quantize(4), "png", bits=2)),
        ("one.png", saved(photograph().convert("1"), "png")),
    ],
    "of 16 bits": lambda: [
        ("grey16.png", saved(Image.fromarray(wide(photograph())), "png")),
        ("colour16.png", colour_of_16_bits(photograph())),
    ],
    "in CMYK": lambda: [("cmyk.jpg", saved(photograph().convert("CMYK"), "jpeg", quality=90))],
    "animated": lambda: [
        ("animated.webp", frames("webp", lossless=True, duration=50)),
        ("animated.png", frames("png", duration=50)),
    ],
    "GIF, TIFF (also of several pages or 16 bits), BMP, PPM, AVIF": lambda: [
        ("animated.gif", frames("gif", duration=50)),
        ("transparent.gif", saved(photograph().quantize(16), "gif", transparency=3)),
        ("pages.tiff", frames("tiff")),
        ("grey16.tiff", saved(Image.fromarray(wide(photograph())), "tiff")),
        ("cmyk.tiff", saved(photograph().convert("CMYK"), "tiff")),
        ("picture.bmp", saved(photograph(), "bmp")),
        ("picture.ppm", saved(photograph(), "ppm")),
        *([("picture.avif", saved(photograph(), "avif"))] if features.check("avif") else []),
    ],
}


def rows_of_the_page() -> dict[str, tuple[str, str]]:
    """What Python and Triton, and what C++ does with each kind, by the table."""
    text = PAGE.read_text(encoding="utf-8").partition("| odd picture |")[2].partition("\n\n")[0]
    return {
        name: (python, cpp)
        for name, python, cpp in re.findall(r"^\| (\w[^|]*) \| ([^|]*) \| ([^|]*) \|$", text, re.M)
    }


def test_the_table_has_every_kind_that_is_tried() -> None:
    assert list(rows_of_the_page()) == list(MADE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_python_triton_and_cpp_see_the_same(
    kind: str, checked: Programs, light: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    both = rows_of_the_page()[kind][1] == "the same"
    for orientation in ("exif", "stored"):
        folder = rewrite(
            copy_of(light, orientation), lambda m, o=orientation: m["preprocessing"].update(orientation=o)
        )
        preprocessing = load_bundle(folder).preprocessing()
        with decoding_model(preprocessing) as model:
            for name, data in MADE[kind]():
                path = tmp_path / name
                path.write_bytes(data)
                expected = preprocessing(load_image(path))
                (answer,) = model.execute([np.array([[data]], object)])
                assert answer.error is None and np.array_equal(answer.tensors[0][0], expected), (
                    name,
                    orientation,
                )
                if both:
                    assert checked.output("sit_probe", "prepare", folder, path) == expected.tobytes(), (
                        name,
                        orientation,
                    )
                else:
                    assert "pass its Pixels" in checked.refusal("sit_probe", "prepare", folder, path)


def test_what_is_seen_is_what_the_table_says(light: Path, tmp_path: Path) -> None:
    """Of Python, against the picture that the file was made of."""
    preprocessing = load_bundle(light).preprocessing()
    plain = np.asarray(photograph(), np.int16)

    def seen(kind: str, name: str) -> np.ndarray:
        path = tmp_path / name
        path.write_bytes(dict(MADE[kind]())[name])
        return np.asarray(load_image(path), np.int16)

    assert np.array_equal(seen("with transparency", "rgba.png"), plain)
    assert np.array_equal(seen("of 16 bits", "colour16.png"), plain)
    grey = np.asarray(photograph().convert("L"), np.int16)
    high = (wide(photograph()) >> 8).astype(np.int16)
    assert np.array_equal(seen("of 16 bits", "grey16.png"), np.repeat(high[:, :, None], 3, 2))
    assert np.abs(high - grey).max() <= 1
    for name in ("animated.webp", "animated.png"):
        assert np.array_equal(seen("animated", name), plain)
    assert np.abs(seen("in CMYK", "cmyk.jpg") - plain).mean() < 12
    assert preprocessing.size[0] < SIDE
