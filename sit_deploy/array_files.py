"""Arrays that are written row by row into an .npz or .npy file of NumPy's, so that they need not fit in memory."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import struct
import zipfile
import zlib
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
_CHECKSUM_AT = 14  # bytes into an entry's own header (PKWARE's APPNOTE, 4.3.7)


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
def archive(path: Path, most: Shapes, complete: Callable[[], Mapping[str, np.ndarray]]) -> Iterator[Write]:
    """Give a function that takes the next rows of every array; the .npz is complete when the block ends well.

    An archive takes one array at a time: the largest goes into it as it comes, the others into files beside it first. Nothing
    is compressed, as by `numpy.savez`. The same arrays give the same bytes.

    Args:
        path: of the archive, in a folder that nobody else writes into.
        most: shapes of the arrays, float32, with as many rows as there may be; there may be fewer.
        complete: gives arrays that are whole, of as many rows as were written, once they all are.

    Raises:
        ValueError: rows that do not come to the shapes, or not to those of `complete`.
    """
    import numpy as np

    largest = max(most, key=lambda name: math.prod(most[name]))
    aside = {name: path.with_name(f"{name}.rows") for name in most if name != largest}
    with path.open("w+b") as own, zipfile.ZipFile(own, "w", allowZip64=True) as file:
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(place.open("w+b")) for name, place in aside.items()}
            streams[largest] = stack.enter_context(_member(file, largest))
            rows = _Rows(streams, most)
            yield rows.write
            shapes = rows.shapes()
            for name in aside:
                _write_header(streams[name], shapes[name], most[name])
        _shorten(own, file.getinfo(f"{largest}.npy"), shapes[largest], most[largest])
        for name, place in aside.items():
            with place.open("rb") as source, _member(file, name) as member:
                shutil.copyfileobj(source, member, _CHUNK)
            place.unlink()
        for name, array in complete().items():
            if len(array) != shapes[largest][0]:
                raise ValueError(f"{name}: {len(array)} rows beside {shapes[largest][0]}")
            with _member(file, name) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextlib.contextmanager
def single(path: Path, name: str, most: tuple[int, ...]) -> Iterator[Write]:
    """Give a function that takes the next rows of the one array of an .npy file. Arguments and errors as `archive`."""
    with path.open("w+b") as stream:
        rows = _Rows({name: stream}, {name: most})
        yield rows.write
        _write_header(stream, rows.shapes()[name], most)


def _member(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an array of an archive for writing, without a date."""
    return file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


class _Rows:
    """Headers, and then rows as they are given, of arrays that must have as many each."""

    def __init__(self, streams: Mapping[str, IO[bytes]], most: Shapes) -> None:
        self._streams, self._most = streams, most
        self._written = dict.fromkeys(most, 0)
        for name, shape in most.items():
            streams[name].write(_header(shape))

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Write the next rows of each."""
        import numpy as np

        for name, shape in self._most.items():
            array = np.ascontiguousarray(rows[name], dtype="<f4")
            if array.shape[1:] != shape[1:]:
                raise ValueError(f"{name}: rows of {array.shape[1:]} in an array of {shape}")
            self._streams[name].write(array.data)
            self._written[name] += len(array)

    def shapes(self) -> Shapes:
        """Return the shapes of what was written."""
        counts = set(self._written.values())
        if len(counts) != 1 or not 0 < min(counts) <= min(shape[0] for shape in self._most.values()):
            raise ValueError(f"rows written: {self._written}, of arrays of {dict(self._most)}")
        return {name: (self._written[name], *shape[1:]) for name, shape in self._most.items()}


def _header(shape: tuple[int, ...]) -> bytes:
    """Return NumPy's header; it leaves room for any count of rows, and so is as long for fewer of them."""
    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _write_header(stream: IO[bytes], shape: tuple[int, ...], before: tuple[int, ...], start: int = 0) -> None:
    """Write the header of an array again, with the rows that came."""
    header = _header(shape)
    if len(header) != len(_header(before)):
        raise ValueError(f"the header of {shape} is not as long as that of {before}")
    stream.seek(start)
    stream.write(header)
    stream.flush()


def _shorten(own: IO[bytes], info: zipfile.ZipInfo, shape: tuple[int, ...], before: tuple[int, ...]) -> None:
    """Give an array that is in an archive already the rows that came: its header, and the checksum with it.

    Args:
        own: the archive's file, open for reading and writing.
        info: of the array's entry, which is the last so far and is stored as it is.
        shape: that it has.
        before: that its header says.
    """
    if shape == before:
        return
    own.seek(info.header_offset)
    local = own.read(zipfile.sizeFileHeader)
    start = info.header_offset + len(local) + sum(struct.unpack("<HH", local[-4:]))  # name and extra field
    _write_header(own, shape, before, start)
    own.seek(start)
    checksum, left = 0, info.file_size
    while left:
        chunk = own.read(min(_CHUNK, left))
        if not chunk:
            raise ValueError(f"{info.filename} is shorter than it was written")
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    info.CRC = checksum  # for the list of entries, which is yet to be written
    own.seek(info.header_offset + _CHECKSUM_AT)
    own.write(struct.pack("<I", checksum))
    own.flush()
