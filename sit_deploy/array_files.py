"""Arrays that are written row by row into an .npz or .npy file of NumPy's, so that they need not fit in memory."""

from __future__ import annotations

import contextlib
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Shapes = Mapping[str, tuple[int, ...]]  # of float32 arrays by name, rows first
Write = Callable[[Mapping[str, "np.ndarray"]], None]  # the next rows of each

_ITEM = 4  # bytes of a float32
_HEADERS = 1024  # bytes an array at most: NumPy's header, and the archive's two entries
_CHUNK = 1 << 20


def size_of(shape: tuple[int, ...]) -> int:
    """Return the bytes of a float32 array with its headers."""
    return math.prod(shape) * _ITEM + _HEADERS


def space_for_archive(shapes: Shapes, others: int) -> int:
    """Return how many bytes of a disk `archive` needs at most, while it is at work.

    Args:
        shapes: of the arrays.
        others: bytes of what is written beside them.
    """
    sizes = sorted(map(size_of, shapes.values()))
    # all but the largest lie beside the archive at first, and each goes when it has been copied into it
    return sum(sizes) + others + (sizes[-2] if len(sizes) > 1 else 0)


@contextlib.contextmanager
def archive(path: Path, shapes: Shapes, complete: Mapping[str, np.ndarray]) -> Iterator[Write]:
    """Give a function that takes the next rows of every array; the .npz is complete when the block ends well.

    An archive takes one array at a time: the largest goes into it as it comes, the others into files beside it first. Nothing
    is compressed, as by `numpy.savez`. The same arrays give the same bytes.

    Args:
        path: of the archive, in a folder that nobody else writes into.
        shapes: of the arrays, float32.
        complete: arrays that are whole already.

    Raises:
        ValueError: rows that do not come to the shapes.
    """
    import numpy as np

    largest = max(shapes, key=lambda name: math.prod(shapes[name]))
    aside = {name: path.with_name(f"{name}.rows") for name in shapes if name != largest}
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        for name, array in complete.items():
            with _member(file, name) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(place.open("wb")) for name, place in aside.items()}
            streams[largest] = stack.enter_context(_member(file, largest))
            with _rows(streams, shapes) as write:
                yield write
        for name, place in aside.items():
            with place.open("rb") as source, _member(file, name) as member:
                shutil.copyfileobj(source, member, _CHUNK)
            place.unlink()


@contextlib.contextmanager
def single(path: Path, name: str, shape: tuple[int, ...]) -> Iterator[Write]:
    """Give a function that takes the next rows of the one array of an .npy file. Arguments and errors as `archive`."""
    with path.open("wb") as stream, _rows({name: stream}, {name: shape}) as write:
        yield write


def _member(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an array of an archive for writing, without a date."""
    return file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


@contextlib.contextmanager
def _rows(streams: Mapping[str, IO[bytes]], shapes: Shapes) -> Iterator[Write]:
    """Write headers, then rows as they are given, and see that they come to the shapes."""
    import numpy as np

    written = dict.fromkeys(shapes, 0)
    for name, shape in shapes.items():
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(streams[name], header)

    def write(rows: Mapping[str, np.ndarray]) -> None:
        for name, shape in shapes.items():
            array = np.ascontiguousarray(rows[name], dtype="<f4")
            if array.shape[1:] != shape[1:]:
                raise ValueError(f"{name}: rows of {array.shape[1:]} in an array of {shape}")
            streams[name].write(array.data)
            written[name] += len(array)

    yield write
    if written != {name: shape[0] for name, shape in shapes.items()}:
        raise ValueError(f"rows written: {written}, of arrays of {dict(shapes)}")
