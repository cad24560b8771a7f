"""Reading the files of `torch.save`, an archive now and one stream of old, without running anything in them.

The pickle is read by `sit_deploy.models.unpickle`; tensors are put together here, and only those that are asked for. The
layouts are those of torch/serialization.py, the tensors' notes those of torch/_utils.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sit_deploy.models.unpickle import Record, full_name, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C
_DEPTH = 12  # of containers within containers that are looked into
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
# as NumPy writes its types, without the byte order
_NUMPY_DTYPES = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32, "i2": torch.int16,
    "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: its sides.
        read: gives the values.
        plain: whether it is made of numbers as they are; else it is quantized, sparse or has no values.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    plain: bool = True

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype | None  # None: bytes
    key: str
    count: int  # of values


class DamagedFileError(Exception):
    """What the file says of its tensors cannot be; the text says what."""


class OtherPickleError(pickle.UnpicklingError):
    """A pickle that `torch.save` did not write."""


def read_archive(path: Path) -> Any:
    """Read an archive: `Stored` for tensors and arrays, dict for whatever is like one, `Record` for other objects.

    Raises:
        DamagedFileError: what it says of its tensors cannot be.
        pickle.UnpicklingError: likewise, of its pickle; and, of damaged bytes, any exception.
    """
    archive = zipfile.ZipFile(path)  # open for as long as tensors may be asked for
    entries = {info.filename: info for info in archive.infolist()}
    (root,) = (name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"])
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
    if order != b"little" or entries[f"{root}data.pkl"].compress_type != zipfile.ZIP_STORED:
        raise DamagedFileError("it is written in another byte order, or compressed")
    content = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), _storage)

    def load(storage: _Storage) -> bytearray:
        name = f"{root}data/{storage.key}"
        if name not in entries or entries[name].compress_type != zipfile.ZIP_STORED:
            raise DamagedFileError(f"it lacks the storage {storage.key[:20]!r}")
        return bytearray(archive.read(name))

    return _plain_content(content, load)


def read_stream(path: Path) -> Any:
    """Read the old format: five pickles, then each storage's count of values and its values. Returns as `read_archive`.

    Raises:
        OtherPickleError: another program's pickle.
        DamagedFileError: what it says of its tensors cannot be.
        pickle.UnpicklingError: likewise, of its pickles; and, of damaged bytes, any exception.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if unpickle(data) != _MAGIC:  # type: ignore[arg-type]
        raise OtherPickleError("it does not begin as a file of torch.save")
    version, system = (unpickle(data) for _ in range(2))  # type: ignore[arg-type]
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise DamagedFileError("it is of another version, or in another byte order")
    storages: dict[str, _Storage] = {}

    def remember(pid: Any) -> _Storage:
        storage = _storage(pid)
        return storages.setdefault(storage.key, storage)

    content = unpickle(data, remember)  # type: ignore[arg-type]
    keys = unpickle(data)  # type: ignore[arg-type]
    offsets, at = {}, data.tell()
    for key in keys:
        size = storages[key].count * (storages[key].dtype or torch.uint8).itemsize
        if int.from_bytes(data[at : at + 8], "little") != storages[key].count or at + 8 + size > len(data):
            raise DamagedFileError("it ends before its values do")
        offsets[key] = (at + 8, at + 8 + size)
        at += 8 + size
    return _plain_content(content, lambda storage: bytearray(data[slice(*offsets[storage.key])]))


def _storage(pid: Any) -> _Storage:
    """Read the note of a storage: ("storage", its class, key, device, count of values[, a view of it])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or (pid[5:] or (None,))[0]:
        raise pickle.UnpicklingError("an unknown persistent id")
    kind, key, count = full_name(pid[1]).split(".")[-1].removesuffix("Storage"), pid[2], pid[4]
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise DamagedFileError("the note of a storage is wrong")
    return _Storage(_DTYPES.get(kind), key, count)


def _plain_content(content: Any, load: Callable[[_Storage], bytearray]) -> Any:
    """Return content with `Stored` for tensors and arrays, dict for whatever is like one, and `Record` for the rest."""
    seen: dict[int, Any] = {}
    cache: dict[str, Tensor] = {}

    def flat(storage: _Storage, dtype: torch.dtype) -> Tensor:
        """Return a storage's values, (count,); read once, as tied weights share it."""
        key = f"{storage.key} {dtype}"
        if key not in cache:
            data = load(storage)
            if len(data) != storage.count * (storage.dtype or torch.uint8).itemsize:
                raise DamagedFileError(
                    f"the storage {storage.key[:20]!r} has another length than it is said to have"
                )
            cache[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return cache[key]

    def plain(value: Any, depth: int) -> Any:
        if id(value) in seen:
            return seen[id(value)]
        content = seen[id(value)] = value  # whatever holds itself is looked into once
        if isinstance(value, Record):
            tensor = _stored(value, flat)
            content = _array(value) if tensor is None else tensor
            if content is None:
                pairs = dict(_pairs(value))
                content = (
                    {k: plain(v, depth + 1) for k, v in pairs.items()} if pairs and depth < _DEPTH else value
                )
        elif isinstance(value, dict) and depth < _DEPTH:
            content = {k: plain(v, depth + 1) for k, v in value.items()}
        elif isinstance(value, list | tuple) and depth < _DEPTH:
            content = [plain(v, depth + 1) for v in value]
        seen[id(value)] = content
        return content

    return plain(content, 0)


def _pairs(record: Record) -> Iterator[tuple[Any, Any]]:
    """Give the entries of what is like a dict: set one by one, or as a list of pairs by Python 2's OrderedDict."""
    for item in record.args[0] if record.args and isinstance(record.args[0], list | tuple) else ():
        if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
            yield item[0], item[1]
    yield from record.entries.items()


_BUILDERS = "torch._utils."
_PARAMETERS = (
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_device_tensor_from_cpu_tensor",
)
_PLAIN = {
    "_rebuild_tensor": 4,
    "_rebuild_tensor_v2": 6,
    "_rebuild_tensor_v3": 7,
}  # and how many arguments they take
_NOT_PLAIN = (
    "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_nested_tensor",
    "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass",
)  # fmt: skip
_TENSOR_CLASSES = ("torch._tensor.Tensor", "torch.Tensor", "torch.nn.parameter.Parameter")


def _stored(record: Record, flat: Callable[[_Storage, torch.dtype], Tensor]) -> Stored | None:
    """Return the tensor that a record notes, None where it is of something else."""
    name, args = full_name(record), record.args
    while True:  # what a tensor is wrapped in
        if name.removeprefix(_BUILDERS) in _PARAMETERS and args and isinstance(args[0], Record):
            name, args = full_name(args[0]), args[0].args
        elif name == "torch._tensor._rebuild_from_type_v2" and len(args) == 4 and isinstance(args[2], tuple):
            # another subclass may hold its values elsewhere
            plain = full_name(args[1]) in _TENSOR_CLASSES
            name, args = (full_name(args[0]), args[2]) if plain else (f"{_BUILDERS}{_NOT_PLAIN[-1]}", ())
        else:
            break
    builder = name.removeprefix(_BUILDERS) if name.startswith(_BUILDERS) else ""
    if builder in _NOT_PLAIN:
        return Stored((), lambda: torch.zeros((), device="meta"), plain=False)
    if builder not in _PLAIN:
        return None
    if len(args) < _PLAIN[builder]:
        raise DamagedFileError("the note of a tensor is too short")
    storage, offset, size, stride = args[:4]
    dtype = storage.dtype if isinstance(storage, _Storage) else None
    if builder == "_rebuild_tensor_v3":
        dtype = getattr(torch, full_name(args[6]).removeprefix("torch."), None)
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(dtype, torch.dtype) or not all(isinstance(n, int) and 0 <= n < 2**62 for n in numbers):
        raise DamagedFileError("the note of a tensor is wrong")

    def read() -> Tensor:
        values = flat(storage, dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(values):
            raise DamagedFileError("a tensor reaches beyond its storage")
        return values.as_strided(size, stride, offset)

    return Stored(size, read)


def _array(record: Record) -> Stored | None:
    """Return the NumPy array that a record notes, None where it is of something else or holds no numbers."""
    name, state = full_name(record), record.state
    if not name.startswith("numpy.") or not name.endswith("._reconstruct"):
        return None
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, fortran, data = state
    if (
        isinstance(data, Record) and full_name(data) == "_codecs.encode" and data.args
    ):  # how protocol 2 writes bytes
        data = data.args[0].encode("latin-1")
    letters = kind.args[0] if isinstance(kind, Record) and kind.args else None
    order = (
        kind.state[1]
        if isinstance(kind, Record) and isinstance(kind.state, tuple) and len(kind.state) > 1
        else None
    )
    dtype = _NUMPY_DTYPES.get(str(letters))
    fits = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if dtype is None or order not in ("<", "|") or not fits or not isinstance(data, bytes):
        return None
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise DamagedFileError("an array has another length than its shape")

    def read() -> Tensor:
        values = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return (
            values.reshape(shape[::-1]).permute(*range(len(shape))[::-1])
            if fortran
            else values.reshape(shape)
        )

    return Stored(shape, read)
