"""The images that a model is calibrated on, as a stream: decoded and prepared anew in every pass, a few held at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.samples import spread
from sit_deploy.errors import InputError
from sit_deploy.processes import Shard
from sit_deploy.text import shown

if TYPE_CHECKING:
    import numpy as np

    from sit_deploy.data.batches import Source
    from sit_deploy.preprocessing import Preprocessing

_BATCH = 8  # images decoded at a time; the graph sees them one by one


@dataclass(frozen=True)
class ImageStream:
    """A stream of images: iterating gives arrays of them, float32 (n, 3, H, W), as often as it is asked.

    Attributes:
        sources: files, or pictures in memory.
        preprocessing: that they pass through.
        description: where they are from, for people.
    """

    sources: Sequence[Source]
    preprocessing: Preprocessing
    description: str

    def __len__(self) -> int:
        return -(-len(self.sources) // _BATCH)

    def __iter__(self) -> Iterator[np.ndarray]:
        from sit_deploy.data.batches import batches

        for images, _ in batches(self.sources, self.preprocessing, _BATCH):
            yield images

    def spread(self, count: int) -> ImageStream:
        """Return the stream of `count` of the images, or of all, evenly spread over them."""
        return replace(self, sources=spread(self.sources, count))

    def part(self, shard: Shard) -> ImageStream:
        """Return the part of the images that one process takes."""
        return replace(self, sources=shard.of(self.sources))

    def digests(self) -> list[str]:
        """Return the SHA-256 of every image as it is stored, in hexadecimal."""
        digests = []
        for source in self.sources:
            data = source.tobytes() if hasattr(source, "tobytes") else Path(source).read_bytes()
            digests.append(hashlib.sha256(data).hexdigest())
        return digests


def calibration_images(
    folder: Path,
    count: int | None,
    default: int,
    preprocessing: Preprocessing,
    damaged: DamagedImages | None = None,
) -> ImageStream:
    """Return the stream of the images of a folder that calibration is to see.

    Args:
        folder: of images, as they are or by class; of a data set, its training images.
        count: how many, which then have to be there; None for `default`, or all where there are fewer.
        default: see `count`.
        preprocessing: that they pass through.
        damaged: takes note of those that cannot be read, in whose place others are taken; as many as usual without it.

    Raises:
        InputError: no images, fewer than asked for, or too many that cannot be read.
    """
    from sit_deploy.data.splits import find_training_images

    folder, listing = find_training_images(folder)
    images = listing.images
    if count is not None and count > len(images):
        raise InputError(
            f"{shown(folder)} has {len(images)} images and --calib-images asks for {count}; add images or ask for fewer"
        )
    damaged = damaged or DamagedImages()
    wanted = default if count is None else count
    chosen = damaged.whole(images, wanted, preprocessing)
    if count is not None and len(chosen) < count:
        raise InputError(
            f"{shown(folder)} has {len(chosen)} images that can be read and --calib-images asks for {count}; mend or add images, or ask for "
            "fewer"
        )
    return ImageStream(chosen, preprocessing, f"{len(chosen)} of {len(images)} images in {shown(folder)}")


def images_key(digests: Collection[str]) -> str:
    """Return what a calibration knows its images by, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
