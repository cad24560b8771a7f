"""Pictures that lie on their side for a model that does not turn them: counted before they are used, and said once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sit_deploy.preprocessing import Preprocessing, is_turned


def ignored_turns(sources: Iterable[Any] | None, preprocessing: Preprocessing, remedy: str) -> str | None:
    """Return in a sentence how many pictures carry an EXIF turn that the preprocessing does not apply, None for none.

    Only the heads of files are read. A data set without files has its pictures decoded, and so turned or not, by others.

    Args:
        sources: paths, or pairs of one with its label; whatever else is among them is not looked at. None: no files.
        remedy: what to do if the model was trained on turned pictures.
    """
    if preprocessing.orientation == "exif" or not isinstance(sources, list | tuple):
        return None
    found = (source[0] if isinstance(source, tuple) else source for source in sources)
    paths = [path for path in found if isinstance(path, str | Path)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        count = sum(pool.map(is_turned, paths))
    if not count:
        return None
    carry = "picture carries" if count == 1 else "pictures carry"
    return (
        f"EXIF: {count} of {len(paths)} {carry} an EXIF orientation that is not applied, as the model takes pixels as they are stored: "
        f"it sees them turned or mirrored; if it was trained on upright pictures, {remedy} --orientation exif"
    )
