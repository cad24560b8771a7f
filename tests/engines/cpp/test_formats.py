"""Which files the C++ library takes: WebP and CMYK as Pillow decodes them, and of what it does not take, the way out."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from sit_deploy.bundle import load_bundle
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import SOURCES, Programs
from tests.engines.cpp.test_orientation import SHORT, turned

PAGE = Path(__file__).parents[3] / "docs/cpp.md"
_WAY_OUT = "; convert it to PNG, or decode it yourself and pass its Pixels"


@pytest.fixture(scope="module")
def webp(checked: Programs) -> Programs:
    """The library, which must decode WebP where libwebp's headers are."""
    done = subprocess.run(
        ["c++", "-E", "-x", "c++", "-"], input="#include <webp/demux.h>\n", text=True, capture_output=True
    )
    if done.returncode:
        pytest.skip("needs webp/demux.h: apt-get install libwebp-dev")
    return checked


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with noise in it, in four channels where the mode has them."""
    rng = np.random.default_rng(width * 1009 + height)
    waves = np.sin(
        np.linspace(0, 9, width)[None, :, None] + np.linspace(0, 7, height)[:, None, None] + np.arange(4)
    )
    data = (127 + 90 * waves + rng.integers(-30, 30, (height, width, 4))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(data, mode) if mode in ("CMYK", "RGBA") else Image.fromarray(data[:, :, :3]).convert(mode)  # fmt: skip


WEBPS: dict[str, tuple[str, dict[str, Any]]] = {
    "lossy": ("RGB", {"quality": 80}),
    "poor": ("RGB", {"quality": 5, "method": 0}),
    "lossy with alpha": ("RGBA", {"quality": 70}),
    "lossless": ("RGB", {"lossless": True}),
    "lossless with alpha": ("RGBA", {"lossless": True}),
    "lossless, invisible colours kept": ("RGBA", {"lossless": True, "exact": True}),
    "grey": ("L", {"quality": 90}),
    "palette": ("P", {"lossless": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEBPS)
def test_webps_decode_as_pillow_decodes_them(name: str, webp: Programs, light: Path, tmp_path: Path) -> None:
    mode, options = WEBPS[name]
    for shape in ((160, 120), (61, 37), (17, 8), (1, 1)):
        path = tmp_path / f"{shape[0]}.webp"
        picture(*shape, mode).save(path, **options)
        assert np.array_equal(webp.image("decode", path), np.asarray(load_image(path))), shape
    expected = load_bundle(light).preprocessing()(load_image(tmp_path / "160.webp"))
    assert webp.output("sit_probe", "prepare", light, tmp_path / "160.webp") == expected.tobytes()


def test_of_an_animated_webp_the_first_frame(webp: Programs, tmp_path: Path) -> None:
    frames = [picture(60, 50, mode) for mode in ("RGBA", "RGB")] + [Image.new("RGB", (60, 50), "red")]
    path = tmp_path / "animated.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert np.array_equal(webp.image("decode", path), np.asarray(load_image(path)))
    data = (
        path.read_bytes()
    )  # the same with its first frame 4 pixels to the right and 2 down: what is around it is black
    start = data.index(b"ANMF") + 8
    moved = data[:start] + bytes([2, 0, 0, 1, 0, 0]) + data[start + 6 :]
    canvas = data.index(b"VP8X") + 12
    path.write_bytes(moved[:canvas] + struct.pack("<HBHB", 63, 0, 51, 0) + moved[canvas + 6 :])
    found, expected = webp.image("decode", path), np.asarray(load_image(path))
    assert found.shape == (52, 64, 3) and np.array_equal(found, expected) and not found[:2].any()


def test_webps_are_turned_as_pillow_turns_them(webp: Programs, tmp_path: Path) -> None:
    said = {
        "exif": {"exif": b"Exif\0\0" + SHORT},
        "bare exif": {"exif": SHORT},
        "xmp": {"xmp": b'<x tiff:Orientation="8"/>'},
        "both": {"exif": b"Exif\0\0" + SHORT, "xmp": b'<x tiff:Orientation="8"/>'},
        "neither": {},
    }
    paths = [tmp_path / f"{name}.webp" for name in said]
    for path, fields in zip(paths, said.values(), strict=True):
        picture(11, 7).save(path, lossless=True, **fields)
    found = list(turned(paths, webp))
    assert [orientation for orientation, _ in found] == [6, 6, 8, 6, 1]


def test_damaged_webps_never_crash(webp: Programs, tmp_path: Path) -> None:
    path = tmp_path / "cut.webp"
    for options in ({"quality": 50}, {"lossless": True}):
        out = io.BytesIO()
        picture(60, 50).save(out, "webp", exif=SHORT, **options)
        whole = out.getvalue()
        for cut in range(13, len(whole) - 2, len(whole) // 12):
            path.write_bytes(whole[:cut])
            line = webp.refusal("sit_probe", "decode", path)
            assert line == f"{path}: cannot decode the image (the WebP is truncated or damaged)"
        for place in range(12, len(whole), len(whole) // 16):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
            assert webp.run("sit_probe", "decode", path).returncode in (0, 2)
    out = io.BytesIO()
    Image.new("RGB", (16383, 16383)).save(out, "webp", lossless=True, method=0)
    path.write_bytes(out.getvalue())  # a few bytes, and all true
    assert "16383 x 16383 pixels: too large to trust" in webp.refusal("sit_probe", "decode", path)


@pytest.mark.slow
def test_without_libwebp_a_webp_is_refused_with_the_way_out(checked: Programs, tmp_path: Path) -> None:
    """What decodes, compiled as it is where libwebp is not; of a JPEG it still makes the same."""
    program, main = tmp_path / "decode", tmp_path / "main.cpp"
    main.write_text(
        "#include <cstdio>\n#include <sit_deploy/error.hpp>\n#include <sit_deploy/image.hpp>\n"
        "int main(int, char** argv) try {\n    const auto image = sit_deploy::load_image(argv[1]);\n"
        '    std::printf("%zu %zu\\n", image.width, image.height);\n}\n'
        'catch (const sit_deploy::Error& error) { std::printf("%s\\n", error.what()); }\n'
    )
    sources = [SOURCES / f"src/{name}.cpp" for name in ("decode", "webp", "exif", "files", "boundary")]
    command = [shutil.which("c++"), "-std=c++17", "-O0", f"-I{SOURCES / 'include'}", main, *sources, "-o", program,
               "-ljpeg", "-lpng", "-lcrypto"]  # fmt: skip
    subprocess.run([*map(str, command)], check=True)
    (tmp_path / "a.webp").write_bytes(b"RIFF\x20\0\0\0WEBPVP8 and so on")
    picture(20, 10).save(tmp_path / "a.jpg")
    said = [
        subprocess.run([program, tmp_path / name], capture_output=True, text=True, check=True).stdout
        for name in ("a.webp", "a.jpg")
    ]
    assert said == [
        f"{tmp_path / 'a.webp'}: a WebP, and this library was built without libwebp: install it (on Debian or Ubuntu: apt-get "
        "install libwebp-dev) and configure again, or convert the image to PNG\n",
        "20 10\n",
    ]


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 40, "progressive": True}], ids=str)
def test_cmyk_decodes_as_pillow_decodes_it(
    options: dict[str, Any], checked: Programs, light: Path, tmp_path: Path
) -> None:
    """As Adobe's CMYK, and as YCCK, which the same bytes are where the marker says so."""
    for shape in ((160, 120), (61, 37), (17, 8)):
        picture(*shape, "CMYK").save(tmp_path / "cmyk.jpg", **options)
        data = (tmp_path / "cmyk.jpg").read_bytes()
        head = data.index(b"Adobe") + len(b"Adobe") + 6  # version, two flags, and then the transform
        assert data[head] == 0
        (tmp_path / "ycck.jpg").write_bytes(data[:head] + b"\2" + data[head + 1 :])
        (tmp_path / "bare.jpg").write_bytes(data[: head - 15] + data[head + 1 :])
        pixels = []
        for name in ("cmyk.jpg", "ycck.jpg", "bare.jpg"):
            with Image.open(tmp_path / name) as image:
                assert image.mode == "CMYK"
            pixels.append(checked.image("decode", tmp_path / name))
            assert np.array_equal(pixels[-1], np.asarray(load_image(tmp_path / name))), (name, shape)
        assert not np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    expected = load_bundle(light).preprocessing()(load_image(tmp_path / "ycck.jpg"))
    assert checked.output("sit_probe", "prepare", light, tmp_path / "ycck.jpg") == expected.tobytes()


def test_what_is_python_s_alone_is_refused_by_name(checked: Programs, tmp_path: Path) -> None:
    forms = {"GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "PPM": "ppm"}
    if features.check("avif"):
        forms["AVIF"] = "avif"
    for kind, form in forms.items():
        path = tmp_path / f"picture.{form}"
        picture(60, 50).save(path)
        load_image(path)  # Python takes it
        line = checked.refusal("sit_probe", "decode", path)
        assert line == f"{path}: no JPEG, PNG or WebP but {kind}{_WAY_OUT}"


def test_the_page_lists_what_each_side_takes(webp: Programs, tmp_path: Path) -> None:
    """Each row of its table, tried with a file of that kind."""
    rows = re.findall(r"^\| (\w[^|]*) \| (yes|no) \| (yes|no) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    made = {
        "JPEG in colour or grey": ("a.jpg", "L"),
        "JPEG in CMYK or YCCK": ("b.jpg", "CMYK"),
        "PNG": ("a.png", "RGBA"),
        "WebP": ("a.webp", "RGBA"),
        "GIF": ("a.gif", "P"),
        "BMP": ("a.bmp", "RGB"),
        "TIFF": ("a.tiff", "RGB"),
        "PPM and PGM": ("a.pgm", "L"),
        "AVIF": ("a.avif", "RGB"),
    }
    assert [name for name, _, _ in rows] == list(made)
    for name, python, cpp in rows:
        path = tmp_path / made[name][0]
        if name == "AVIF" and not features.check("avif"):
            continue
        picture(30, 20, made[name][1]).save(path)
        load_image(path)
        done = webp.run("sit_probe", "decode", path)
        assert (python, cpp) == ("yes", "yes" if done.returncode == 0 else "no"), name
