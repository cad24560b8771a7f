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

from sit_deploy.data.image_files import (
    check_folder,
    files_in,
    find_images,
    images_below,
    special_kind,
    subfolders,
)
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing, open_source
from sit_deploy.text import shown

Progress = Callable[[str, int, int], None]
Source = str | Path | Image.Image


# ------------------------------------------------------------------------------------------------------------ files


def list_images(where: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return every image of a file, of a folder with all below it, or of several of these; see `find_images`."""
    return find_images(where).images


class ImageFolder:
    """A labelled data set: one folder a class, laid out and numbered as torchvision's ImageFolder does it.

    classes: the folders' names, sorted by code point; a class's index is its label. Characters that are not to be shown
        are escaped (`shown`).
    samples: (path, label) pairs, in class order. Folders below a class folder are searched too.
    skipped: the other files in the classes and beside them, counted by ending or kind.

    Hidden folders and the litter of operating systems are no classes (torchvision counts them). Raises InputError for a
    missing root, a root without class folders, and a class without images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        where = shown(self.root)
        if not self.root.is_dir():
            raise InputError(f"{where}: {in_place_of_folder(self.root)}")
        check_folder(self.root)
        folders = subfolders(self.root)
        if not folders:
            raise InputError(f"{where}: no class folders; put each class's images into a folder of its own")
        self.classes = [shown(name) for name in folders]
        self.skipped = files_in(self.root)
        self.samples: list[tuple[Path, int]] = []
        empty = []
        for label, name in enumerate(folders):
            images = images_below(self.root / name, self.skipped)
            self.samples += [(path, label) for path in images]
            if not images:
                empty.append(self.classes[label])
        if empty:
            listing = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise InputError(
                f"{where}: no images for {len(empty)} of {len(self.classes)} classes ({listing}); "
                "add images, or remove the empty folders if the labels need not match a trained head"
            )

    def __len__(self) -> int:
        return len(self.samples)


def in_place_of_folder(path: Path) -> str:
    """Say what is there in place of a folder of class folders, and what to do."""
    if not path.exists():
        return "no such folder; check the path"
    ending = path.suffix.lower()
    if special := special_kind(path):
        return f"a {special}, and no folder; pass a folder with one subfolder a class"
    if ending in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"):
        return "an archive; unpack it, and pass the folder with one subfolder a class"
    if ending in (".csv", ".tsv", ".txt", ".json", ".xml", ".parquet"):
        return "a list, and no folder; put the images into one folder a class, and pass the folder of these"
    return "a file, and no folder; pass a folder with one subfolder a class"


def load_labels(path: str | Path, classes: int | None = None) -> list[str]:
    """Class names from a UTF-8 text file, one a line, in label order. Names may repeat, as ImageNet's do.

    Raises InputError where the file cannot be read, a line is empty, or there are not `classes` of them.
    """
    if special := special_kind(path):
        raise InputError(
            f"{shown(path)} is a {special}, no file of class names; pass a text file, one name a line"
        )
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
        image = source if isinstance(source, Image.Image) else open_source(source)
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
