"""Files that are called pictures and are none, of every kind that large folders have."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from sit_deploy.data.synthetic import synthetic_images

NAMES = ("bomb.png", "broken_link.jpg", "empty.jpg", "no_pixels.ppm", "text.jpg", "truncated.jpg")


def add_damaged(folder: Path) -> None:
    """Put the files of `NAMES` into a folder, and a folder that is called a picture, which is no file and counts as none."""
    (picture,) = synthetic_images(1, size=(160, 128), seed=9)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[:-200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("404 not found")
    (folder / "no_pixels.ppm").write_bytes(b"P6 0 0 255\n")
    (folder / "bomb.png").write_bytes(_bomb())
    (folder / "broken_link.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").mkdir()


def _bomb() -> bytes:
    """Return a PNG of 60 000 x 60 000 pixels in few bytes."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)
