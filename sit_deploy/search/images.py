"""The images that a search judges on: labelled or not, or synthetic ones; as pixels, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sit_deploy.data.batches import batches
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.ignored_orientation import ignored_orientation_note
from sit_deploy.data.labelled import Labelled
from sit_deploy.data.samples import spread_over
from sit_deploy.data.splits import find_training_images
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.text import shown

MOST = 1024  # images of 224 pixels are 150 KB each
SYNTHETIC = 64
LEAST = 8


@dataclass(frozen=True)
class SearchImages:
    """Images to judge on.

    Attributes:
        pixels: uint8 (n, H, W, 3), as the preprocessing gives them before it normalises.
        labels: of each, where they have some.
        words: where they are from.
        notes: what else to know, in sentences.
    """

    pixels: np.ndarray
    labels: Sequence[int] | None
    words: str
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        labels = "" if self.labels is None else ",".join(map(str, self.labels))
        return hashlib.sha256(self.pixels.tobytes() + labels.encode()).hexdigest()


def open_images(
    folder: Path | None, labelled: Labelled | None, preprocessing: Preprocessing, damaged: DamagedImages
) -> SearchImages:
    """Return up to `MOST` of the images, evenly spread.

    Args:
        folder: of images without labels.
        labelled: those with labels, in its place.
        preprocessing: that they pass through.
        damaged: takes note of those that cannot be read, which are left out.

    Raises:
        InputError: no images, fewer than `LEAST`, or too many that cannot be read.
    """
    notes = []
    if labelled is not None:
        sources, words = labelled.samples, f"{labelled.name}, labelled"
        notes += labelled.notes
    elif folder is not None:
        folder, listing = find_training_images(folder)
        sources, words = listing.images, f"{shown(folder)}, without labels"
        notes += [listing.note] if listing.note else []
    else:
        from sit_deploy.data.synthetic import synthetic_images

        sources, words = synthetic_images(SYNTHETIC), f"{SYNTHETIC} synthetic images"
        notes.append(
            "no --data: schedules were compared on synthetic images, which are no photographs; the order of schedules may be another on "
            "yours"
        )
    count, where = len(sources), words.partition(",")[0]
    _require_enough(count, where)
    chosen = spread_over(sources, MOST)
    read = list(batches(chosen, preprocessing.raw, len(chosen), damaged=damaged))
    damaged.require_any(len(read), len(chosen))
    ((pixels, labels),) = read
    _require_enough(len(pixels), where, " that can be read" if len(pixels) < len(chosen) else "")
    if folder is not None or labelled is not None:
        words = (
            f"{len(pixels)} of {count} images in {words}"
            if len(pixels) < count
            else f"{count} images in {words}"
        )
        note = ignored_orientation_note(chosen, preprocessing, "search with")
        notes += [note] if note else []
    return SearchImages(pixels, list(map(int, labels)) if labelled is not None else None, words, tuple(notes))


def _require_enough(count: int, where: str, which: str = "") -> None:
    if count < LEAST:
        raise InputError(
            f"{where} has {count} images{which}, from which nothing can be told; give at least {LEAST}, better some hundred"
        )
