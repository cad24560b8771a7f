"""Pictures that were held another way: the C++ library turns them exactly as the Python side does, or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sit_deploy.bundle import load_bundle
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import Programs
from tests.engines.cpp.manifests import rewrite

_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def exif(value: bytes, kind: int = 3, count: int = 1, order: str = "II", tag: int = 0x0112) -> bytes:
    """A TIFF file of one tag; `value` fills the four bytes of the entry, or stands behind where it is longer."""
    end = "<" if order == "II" else ">"
    field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(end + "L", 26)
    head = order.encode() + struct.pack(end + "HLH", 42, 8, 1)
    return head + struct.pack(end + "HHL", tag, kind, count) + field + bytes(4) + value * (len(value) > 4)


def entries(*tags: tuple[int, int, int, bytes]) -> bytes:
    """A little-endian TIFF file of several entries, as they are given."""
    body = b"".join(struct.pack("<HHL4s", *tag) for tag in tags)
    return b"II" + struct.pack("<HLH", 42, 8, len(tags)) + body + bytes(4)


SHORT = exif(b"\6\0")
TIFFS = {
    **{f"{order} {turn}": exif(struct.pack(end + "H", turn), order=order) for order, end in (("II", "<"), ("MM", ">")) for turn in range(10)},
    "long": exif(struct.pack("<L", 5), 4),
    "rational": exif(struct.pack("<LL", 16, 2), 5),
    "rational over zero": exif(struct.pack("<LL", 6, 0), 5),
    "signed rational": exif(struct.pack("<ll", -3, -1), 10),
    "float": exif(struct.pack("<f", 7), 11),
    "double": exif(struct.pack("<d", 4), 12),
    "half": exif(struct.pack("<d", 6.5), 12),
    "byte": exif(b"\6", 1),
    "text": exif(b"6\0", 2, 2),
    "signed": exif(b"\6", 6),
    "two values": exif(struct.pack("<HH", 8, 3), 3, 2),
    "no value": exif(b"\6\0", 3, 0),
    "unknown type": exif(b"\6\0", 99),
    "value beyond the end": exif(b"\xff\xff\xff\x7f", 3, 4),
    "count beyond the file": exif(b"\6\0", 4, 2**31),
    "directory beyond the end": b"II" + struct.pack("<HL", 42, 2**31),
    "directory cut off": SHORT[:16],
    "header cut off": SHORT[:6],
    "no TIFF": b"nothing of the kind",
    "BigTIFF": b"II\x2b\0" + SHORT[4:],
    "order of the other": b"MM\x2a\0" + exif(struct.pack(">H", 6), order="MM")[4:],
    "twice": entries((0x112, 3, 1, b"\3\0\0\0"), (0x112, 3, 1, b"\6\0\0\0")),
    "behind a large one": entries((0x10F, 2, 5000, b"\x1a\0\0\0"), (0x112, 3, 1, b"\6\0\0\0")),
    "behind one that leads away": entries((0x10F, 2, 9, b"\xff\0\0\0"), (0x112, 3, 1, b"\6\0\0\0")),
    "marked twice": b"Exif\0\0" + SHORT,
    "empty": b"",
}  # fmt: skip


def jpeg(*markers: bytes, mode: str = "RGB") -> bytes:
    """A picture of 11 × 7 with these APP1 markers."""
    out = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "jpeg", quality=95)
    head, rest = out.getvalue()[:2], out.getvalue()[2:]
    return head + b"".join(b"\xff\xe1" + struct.pack(">H", len(m) + 2) + m for m in markers) + rest


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(before: bytes = b"", behind: bytes = b"", mode: str = "RGB") -> bytes:
    """A picture of 11 × 7 with these chunks before its pixels and behind them."""
    out = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, "png")
    data = out.getvalue()
    return data[:33] + before + data[33:-12] + behind + data[-12:]


def profile(data: bytes) -> bytes:
    """EXIF as ImageMagick's text."""
    return chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(data) + data.hex().encode() + b"\n")


def xmp(text: bytes, packed: bool = False) -> bytes:
    body = zlib.compress(text) if packed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed]) + b"\0\0\0" + body)


NONE = exif(b"\6\0", tag=0x0113)  # EXIF that does not speak of it
FILES = {
    "parts of one.jpg": jpeg(b"Exif\0\0" + SHORT[:20], b"Exif\0\0" + SHORT[20:]),
    "grey.jpg": jpeg(b"Exif\0\0" + SHORT, mode="L"),
    "xmp.jpg": jpeg(_XMP + b'<x tiff:Orientation="8"/>'),
    "xmp element.jpg": jpeg(b"Exif\0\0" + NONE, _XMP + b"<tiff:Orientation>3</tiff:Orientation>"),
    "xmp of no number.jpg": jpeg(_XMP + b'tiff:Orientation=\'6\' tiff:Orientation="x" tiff:Orientation="4'),
    "exif before xmp.jpg": jpeg(_XMP + b'tiff:Orientation="8"', b"Exif\0\0" + SHORT),
    "broken exif and xmp.jpg": jpeg(b"Exif\0\0II?", _XMP + b'tiff:Orientation="8"'),
    "last xmp.jpg": jpeg(_XMP + b'tiff:Orientation="8"', _XMP + b'tiff:Orientation="2"'),
    "another marker.jpg": jpeg(b"Exif" + SHORT),
    "behind.png": png(behind=chunk(b"eXIf", SHORT)),
    "grey.png": png(chunk(b"eXIf", SHORT), mode="L"),
    "palette.png": png(chunk(b"eXIf", SHORT), mode="P"),
    "last.png": png(chunk(b"eXIf", SHORT), chunk(b"eXIf", exif(b"\3\0"))),
    "profile.png": png(profile(b"Exif\0\0" + SHORT)),
    "profile of no numbers.png": png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n2\nxyz\n")),
    "profile cut off.png": png(chunk(b"tEXt", b"Raw profile type exif\0\nexif")),
    "exif before profile.png": png(profile(SHORT) + chunk(b"eXIf", exif(b"\3\0"))),
    "xmp.png": png(xmp(b'tiff:Orientation="5"')),
    "xmp packed.png": png(xmp(b"<tiff:Orientation>7<", packed=True)),
}


def turned(paths: list[Path], checked: Programs) -> Iterator[tuple[int, np.ndarray]]:
    """The orientation that the library finds in each picture, and its pixels turned by it: uint8 (H, W, 3)."""
    out = io.BytesIO(checked.output("sit_probe", "orientation", *paths))
    for _ in paths:
        orientation = int(out.readline())
        width, height = map(int, out.readline().split())
        yield orientation, np.frombuffer(out.read(3 * width * height), np.uint8).reshape(height, width, 3)
    assert not out.read()


def as_pillow(path: Path) -> np.ndarray:
    """A picture as Pillow turns it, as our Python side uses Pillow, which forgives what is damaged."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # of any type: a header that is none
        return np.asarray(load_image(path))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of each damaged directory
def test_pictures_are_turned_as_pillow_turns_them(checked: Programs, tmp_path: Path) -> None:
    """By EXIF of every value, type and damage, by XMP, in every place of a file."""
    files = dict(FILES)
    files |= {f"{name} in a JPEG.jpg": jpeg(b"Exif\0\0" + tiff) for name, tiff in TIFFS.items()}
    for name in ("MM 5", "rational", "value beyond the end", "BigTIFF", "marked twice", "twice"):
        files[f"{name} in a PNG.png"] = png(chunk(b"eXIf", TIFFS[name]))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in files]
    for path, (orientation, pixels) in zip(paths, turned(paths, checked), strict=True):
        assert np.array_equal(pixels, as_pillow(path)), path.name
        assert (orientation == 1) == np.array_equal(pixels, load_image(path)), path.name


def test_a_bundle_says_whether_pictures_are_turned(
    checked: Programs, light: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(b"Exif\0\0" + SHORT))
    found = {}
    for said in ("exif", "stored", None):
        folder = copy_of(light, str(said))
        rewrite(folder, lambda m, said=said: m["preprocessing"].update(orientation=said))
        if said is None:  # as in bundles of before there was a choice
            rewrite(folder, lambda m: m["preprocessing"].pop("orientation"))
        found[said] = checked.output("sit_probe", "prepare", folder, tmp_path / "photo.jpg")
        expected = load_bundle(folder).preprocessing()(load_image(tmp_path / "photo.jpg"))
        assert found[said] == expected.tobytes(), said
    assert found["exif"] != found["stored"] == found[None]
    folder = rewrite(copy_of(light), lambda m: m["preprocessing"].update(orientation="sideways"))
    assert "orientation unknown here (sideways); upgrade" in checked.refusal("sit_probe", "open", folder)
    folder = rewrite(folder, lambda m: m["preprocessing"].update(orientation="exif", colours="BGR"))
    assert "preprocessing unknown here (colours); upgrade" in checked.refusal("sit_probe", "open", folder)
