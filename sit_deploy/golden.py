"""The golden images of a bundle and the reference's outputs of them: golden.npz, read without believing what it says of itself."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import InputError
from .limits import GOLDEN

if TYPE_CHECKING:
    import numpy as np

    from .outputs import Output
    from .preprocessing import Preprocessing

_TYPES = {"float32": "<f4", "uint8": "|u1"}
# of the npy format 1.0, as NumPy writes it for an array in C order
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^'\\]{1,20})', 'fortran_order': False, 'shape': \(([0-9, ]{1,200})\), ?\}\s*$",
    re.DOTALL,
)


def read_golden(
    path: Path, preprocessing: Preprocessing, outputs: Sequence[Output]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return images as the engine takes them, float32 (n, 3, H, W) or uint8 (n, H, W, 3), and outputs float32 (n, ...) by name.

    Nothing is allocated but what the file holds: its arrays are not compressed, and of the size that the manifest says.

    Args:
        path: of the archive.
        preprocessing: of the manifest.
        outputs: likewise.

    Raises:
        InputError: no such archive, damaged, arrays of another type or shape, or NaN or infinity among the values.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            images = _array(archive, "images", preprocessing.dtype, preprocessing.shape)
            values = {one.name: _array(archive, one.name, one.dtype, one.shape) for one in outputs}
        for name, array in values.items():
            if len(images) != len(array):
                raise ValueError(f"{len(images)} images and {name} of {len(array)}")
        for name, array in (("images", images), *values.items()):
            if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
                row = int((~finite).reshape(len(array), -1).any(axis=1).argmax())
                raise ValueError(f"its {name} hold NaN or infinity, first in row {row}")
    # of a damaged archive zipfile makes any of these
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:  # fmt: skip
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise InputError(
            f"{path}: does not fit the manifest ({reason}); copy the bundle again or rebuild it"
        ) from None
    return images, values


def _array(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array (n, *shape) of an archive, n from 1 to `GOLDEN`.

    Raises:
        ValueError: it is another, or there is not as much of it as it says.
    """
    import numpy as np

    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:  # a few bytes may be gigabytes
        raise ValueError(f"its {name} are compressed")
    row = np.dtype(dtype).itemsize
    for side in shape:
        row *= side  # integers of Python: nothing wraps
    if info.file_size > Path(str(archive.filename)).stat().st_size:
        raise ValueError(f"its {name} are {info.file_size} bytes")
    content = archive.read(info)
    # NumPy's own reader evaluates this line, and fails in many ways where it is none
    start = 10 + int.from_bytes(content[8:10], "little")
    header = _HEADER.match(content[:start])
    if header is None:
        raise ValueError(f"its {name} are no plain array")
    kind, sides = header[1].decode(), tuple(int(side) for side in header[2].split(b",") if side.strip())
    if kind != _TYPES[dtype] or sides[1:] != shape or not 1 <= sides[0] <= GOLDEN:
        raise ValueError(
            f"its {name} are {kind} {sides}, not {_TYPES[dtype]} (n, {', '.join(map(str, shape))})"
        )
    if len(content) - start != sides[0] * row:
        raise ValueError(f"its {name} are {len(content) - start} bytes, not {sides[0] * row}")
    return np.frombuffer(content, dtype, offset=start).reshape(sides).copy()
