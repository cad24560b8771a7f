"""Images that two sets have in common: a figure measured on what was trained or calibrated on says little.

Two questions, with two answers. A folder that is calibrated on is often the very one that is measured on, by whatever path:
the files are the same. Parts to train on and to hold out are copied from one heap: other files of the same content.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def count_same_files(files: Iterable[Any], samples: Iterable[tuple[Any, int]]) -> int:
    """Return how many of the files are among labelled images, whatever path leads to them; what is no file is none."""
    measured = {_identity(path) for path, _ in samples} - {None}
    return sum(_identity(path) in measured for path in files) if measured else 0


def _identity(path: Any) -> tuple[int, int] | None:
    """Return what the file system knows a file by, None for what is no file."""
    try:
        facts = Path(path).stat()
    except (OSError, TypeError):
        return None
    return facts.st_dev, facts.st_ino


def find_same_images(held_out: Sequence[tuple[Path, int]], train: Iterable[tuple[Path, int]]) -> list[Path]:
    """Return the files held out whose class, name and content one of the others has.

    Only files of one name are compared, so that a large data set costs no more than a look at its list.
    """
    wanted = {(label, path.name) for path, label in held_out}
    alike: dict[tuple[int, str], list[Path]] = {}
    for path, label in train:
        if (label, path.name) in wanted:
            alike.setdefault((label, path.name), []).append(path)
    return [
        path
        for path, label in held_out
        if any(_has_same_content(path, other) for other in alike.get((label, path.name), ()))
    ]


def _has_same_content(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # who reads it says so
        return False
