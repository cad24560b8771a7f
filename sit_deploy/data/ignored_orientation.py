"""EXIF orientations that a preprocessing does not apply: pictures that the model sees turned or mirrored, counted and said once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from engines.cpu import cpu_count
from sit_deploy.data.samples import spread
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing, is_turned, turn_of
from sit_deploy.text import WarningText

_DECODED = 64  # pictures looked at of a data set that has no files, for each is decoded


def ignored_orientation_note(
    sources: Sequence[Any], preprocessing: Preprocessing, remedy: str
) -> WarningText | None:
    """Return in a sentence how many pictures carry an EXIF turn that the preprocessing does not apply, None for none.

    Args:
        sources: files, whose heads are read, or Pillow images; or pairs of one with its label. Of a data set that decodes its
            pictures when they are asked for, some are looked at.
        preprocessing: of the pictures.
        remedy: what to do if the model was trained on turned pictures.
    """
    if preprocessing.orientation == "exif":
        return None
    sources = getattr(sources, "files", None) or sources
    if not isinstance(sources, list | tuple):
        sources = [
            picture for i in spread(range(len(sources)), _DECODED) if (picture := _fetched(sources, i))
        ]
    pictures = [source[0] if isinstance(source, tuple) else source for source in sources]
    with ThreadPoolExecutor(min(4, cpu_count())) as pool:
        count = sum(pool.map(_ignores_orientation, pictures))
    if not count:
        return None
    carry = "picture carries" if count == 1 else "pictures carry"
    return WarningText(
        f"EXIF: {count} of {len(pictures)} {carry} an EXIF orientation that is not applied, as the model takes pixels as they are "
        f"stored: it sees them turned or mirrored; if it was trained on upright pictures, {remedy} --orientation exif"
    )


def _fetched(sources: Sequence[Any], index: int) -> Any:
    """Return a picture of a data set, None for one that cannot be read: who uses it says so."""
    try:
        return sources[index]
    except InputError:
        return None


def _ignores_orientation(source: Any) -> bool:
    if isinstance(source, Image.Image):
        return turn_of(source) is not None
    return isinstance(source, str | Path) and is_turned(source)
