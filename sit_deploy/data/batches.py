"""Batches of images, decoded and preprocessed in a few threads, in order, in little memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from engines.base import Progress
from engines.cpu import cpu_count

# relative: a folder of `package python` takes this file along, without the package around it
from ..errors import InputError
from ..preprocessing import Preprocessing
from .given import open_source

if TYPE_CHECKING:
    from .damaged import DamagedImages

Source = str | Path | Image.Image | bytes | np.ndarray


def batches(
    samples: Sequence[Source] | Sequence[tuple[Source, int]],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    damaged: DamagedImages | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | list[Source]]]:
    """Decode and preprocess in a few threads, in order, holding at most two batches and one image a thread.

    Args:
        samples: what `open_source` takes, or pairs of one with its label (`ImageFolder.samples`); any sequence, whose items are
            fetched by several threads.
        preprocessing: of the images.
        batch_size: images a batch; the last one may be short.
        progress: called with a step, how much of it is done, and of how much.
        workers: threads that decode; up to four by default.
        damaged: takes note of images that cannot be read, which are left out; without, the first ends it.

    Yields:
        Images (n, *preprocessing.shape) of its dtype, and labels int64 (n,) or, where there are none, the sources themselves.

    Raises:
        InputError: no samples, a batch size below 1, a bad image, or more of them than `damaged` allows.
    """
    if batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}; pass --batch-size 1 or more")
    if not samples:
        raise InputError("no images to load; pass a folder or at least one file")
    # Checked before the first batch is asked for, which is why the generator is a function of its own.
    workers = workers or min(4, cpu_count())
    return _batches(samples, preprocessing, batch_size, progress, workers, damaged)


def _batches(
    samples: Sequence[Any],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None,
    workers: int,
    damaged: DamagedImages | None,
) -> Iterator[tuple[np.ndarray, Any]]:
    labelled = _are_labelled(samples, damaged)

    def prepare(index: int) -> tuple[np.ndarray, Any]:
        # fetched here: a data set that is no list of files decodes its image when it is asked for it
        sample = samples[index]
        source, label = sample if labelled else (sample, sample)
        return preprocessing(_opened(source, index, len(samples))), label

    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    pending: deque[tuple[int, Future[tuple[np.ndarray, Any]]]] = deque()
    indices = iter(range(len(samples)))
    taken = 0

    def prepared() -> Iterator[tuple[np.ndarray, Any]]:
        """Give every image that can be read, in order, and count all of them."""
        nonlocal taken
        while True:
            while len(pending) < batch_size + workers:
                index = next(indices, None)
                if index is None:
                    break
                pending.append((index, pool.submit(prepare, index)))
            if not pending:
                return
            index, future = pending.popleft()
            taken += 1
            try:
                done = future.result()
            except Exception as error:  # of any type, from a decoder or a data set
                if damaged is None:
                    raise
                damaged.note(_called(samples, index, labelled), error)
                continue
            yield done

    whole = prepared()
    try:
        while taken < len(samples):
            size = min(batch_size, len(samples) - taken)
            images, labels = np.empty((size, *preprocessing.shape), preprocessing.dtype), []
            for row, (image, label) in enumerate(islice(whole, size)):
                images[row] = image
                labels.append(label)
            if progress:
                progress("loading images", taken, len(samples))
            if labels:
                yield images[: len(labels)], np.array(labels, np.int64) if labelled else labels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _are_labelled(samples: Sequence[Any], damaged: DamagedImages | None) -> bool:
    """Whether these are pairs with a label, by the first that can be had."""
    for index in range(len(samples)):
        try:
            return isinstance(samples[index], tuple)
        except Exception:  # of any type, from a data set; whoever asks for this one takes note of it
            if damaged is None:
                raise
    return False


def _called(samples: Sequence[Any], index: int, labelled: bool) -> str:
    """Return what to call an image that cannot be had: its path, what its data set says, or its place."""
    tell = getattr(samples, "describe", None)
    if tell:
        return tell(index)
    source = samples[index][0] if labelled else samples[index]
    return str(source) if isinstance(source, str | Path) else f"image {index + 1} of {len(samples)}"


def _opened(source: Source, index: int, count: int) -> Image.Image:
    """Open an image; one of several without a name of its own is named by its place."""
    try:
        return open_source(source)
    except InputError as error:
        if count == 1 or isinstance(source, str | Path):
            raise
        raise InputError(f"image {index + 1} of {count}: {error}") from None
