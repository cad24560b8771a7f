"""Images in: image files and folders, class names, and batches (Pillow and NumPy only)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import NO_IMAGE, Preprocessing, is_image, load_image

Progress = Callable[[str, int, int], None]
Source = str | Path | Image.Image

# What torchvision's ImageFolder takes for an image. A file with another ending is opened to see what it is.
_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
# Left behind by file managers; they say nothing about the data set.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})


# ------------------------------------------------------------------------------------------------------------ files


def list_images(where: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every image of a file, of a folder with all below it, or of several of these; sorted within each folder.

    Hidden files and file managers' litter are skipped. Any other file that is no image raises InputError, as do a
    missing path and a folder without images.
    """
    if isinstance(where, str | Path):
        where = [where]
    found: list[Path] = []
    for entry in map(Path, where):
        if entry.is_dir():
            images = _images_below(entry)
            if not images:
                raise InputError(f"{entry}: no images in this folder; pass one that has some")
            found += images
        elif entry.exists():
            _refuse_non_image(entry)
            found.append(entry)
        else:
            raise InputError(f"{entry}: no such file or folder; check the path")
    if not found:
        raise InputError("no images given; pass a folder or at least one file")
    return found


class ImageFolder:
    """A labelled data set: one folder a class, laid out and numbered as torchvision's ImageFolder does it.

    classes: the folders' names, sorted by code point; a class's index is its label.
    samples: (path, label) pairs, in class order. Folders below a class folder are searched too.

    Files beside the class folders are ignored, as in torchvision. Hidden folders are no classes (torchvision counts
    them). Raises InputError for a missing root, a root without class folders, a class without images, and a file in
    a class that is no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder; check the path")
        self.classes = sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise InputError(
                f"{self.root}: no class folders; put each class's images into a folder of its own"
            )
        self.samples: list[tuple[Path, int]] = []
        empty = []
        for label, name in enumerate(self.classes):
            images = _images_below(self.root / name)
            self.samples += [(path, label) for path in images]
            if not images:
                empty.append(name)
        if empty:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise InputError(
                f"{self.root}: no images for {len(empty)} of {len(self.classes)} classes ({shown}); "
                "add images, or remove the empty folders if the labels need not match a trained head"
            )

    def __len__(self) -> int:
        return len(self.samples)


def load_labels(path: str | Path, classes: int | None = None) -> list[str]:
    """Class names from a UTF-8 text file, one a line, in label order. Names may repeat, as ImageNet's do.

    Raises InputError where the file cannot be read, a line is empty, or there are not `classes` of them.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot read the class names ({error}); pass a UTF-8 text file, one name a line"
        ) from None
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty; give every class a name")
    if not names:
        raise InputError(f"{path}: no class names; write one a line")
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{path}: {len(names)} class names for a model of {classes} classes; write one a line"
        )
    return names


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items, or all, evenly spread: a sorted data set then does not give one class only."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


# ---------------------------------------------------------------------------------------------------------- batches


def batches(
    samples: Sequence[Source] | Sequence[tuple[Source, int]],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | list[Source]]]:
    """Decode and preprocess in a few threads, in order, holding at most two batches and one image a thread.

    samples: paths or Pillow images, or pairs of one with its label (`ImageFolder.samples`); any sequence, whose items are
        fetched by several threads.
    Yields (images (n, *preprocessing.shape) of its dtype, labels int64 (n,)), or the sources themselves in place of labels where there
    are none. The last batch may be short. Raises InputError for no samples, a batch size below 1 or a bad image.
    """
    if batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}; pass --batch-size 1 or more")
    if not samples:
        raise InputError("no images to load; pass a folder or at least one file")
    # Checked before the first batch is asked for, which is why the generator is a function of its own.
    workers = workers or min(4, os.cpu_count() or 1)
    return _batches(samples, preprocessing, batch_size, progress, workers)


def _batches(
    samples: Sequence[Any],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None,
    workers: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    labelled = isinstance(samples[0], tuple)

    def prepare(index: int) -> tuple[np.ndarray, Any]:
        # fetched here: a data set that is no list of files decodes its image when it is asked for it
        sample = samples[index]
        source, label = sample if labelled else (sample, sample)
        image = source if isinstance(source, Image.Image) else load_image(source)
        return preprocessing(image), label

    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    pending: deque[Future[tuple[np.ndarray, Any]]] = deque()
    indices = iter(range(len(samples)))
    try:
        for start in range(0, len(samples), batch_size):
            size = min(batch_size, len(samples) - start)
            images, labels = np.empty((size, *preprocessing.shape), preprocessing.dtype), []
            for row in range(size):
                while len(pending) < batch_size + workers:
                    index = next(indices, None)
                    if index is None:
                        break
                    pending.append(pool.submit(prepare, index))
                images[row], label = pending.popleft().result()
                labels.append(label)
            if progress:
                progress("loading images", start + size, len(samples))
            yield images, np.array(labels, np.int64) if labelled else labels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------- helpers


def _images_below(folder: Path) -> list[Path]:
    images = []
    # os.walk, and its order, are torchvision's: samples come in the same order there and here.
    for here, _, names in sorted(_visible(folder)):
        for name in sorted(names):
            if not name.startswith(".") and name.lower() not in _LITTER:
                path = Path(here, name)
                _refuse_non_image(path)
                images.append(path)
    return images


def _visible(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield here, folders, names


def _refuse_non_image(path: Path) -> None:
    """Say early that a file is no image. Endings are believed here; a wrong one shows when the file is decoded."""
    if path.suffix.lower() in _IMAGE_ENDINGS:
        return
    if not is_image(path):
        raise InputError(f"{path}: {NO_IMAGE}; remove it or move it elsewhere")
