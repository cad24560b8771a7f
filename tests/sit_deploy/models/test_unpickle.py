"""Unpickling that runs nothing: hostile pickles of every make, and what they cost."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.unpickle import HostilePickle, Record, full_name, unpickle


class Call:
    """Pickles as the call of a function with arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.pair = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.pair


def script(module: str, name: str, *opcodes: bytes) -> bytes:
    """A pickle that names something, then does what the opcodes say."""
    return b"c" + f"{module}\n{name}\n".encode() + b"".join(opcodes) + b"."


def touch(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "system": lambda m: Call(os.system, f"touch {m}"),
    "eval": lambda m: Call(eval, touch(m)),
    "exec": lambda m: Call(exec, touch(m)),
    "popen": lambda m: Call(subprocess.Popen, ["touch", str(m)]),
    "getattr of a module": lambda m: Call(getattr, Call(__import__, "os"), "system"),
    "a method by getattr": lambda m: Call(getattr, Path, "touch"),
    "a path's own method": lambda m: Call(Path.touch, Path(m)),
    "a storage of a file": lambda m: Call(torch.UntypedStorage.from_file, str(m), True, 8),
}  # fmt: skip
INERT: dict[str, Callable[[Path], Any]] = {
    "io.open": lambda m: Call(open, str(m), "w"),
    "torch.save": lambda m: Call(torch.save, [1], str(m)),
    "torch.load": lambda m: Call(torch.load, str(m)),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", [*HOSTILE, *INERT])
def test_nothing_is_run(kind: str, old: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "sit.pth"
    content = {"model": {"norm.weight": torch.ones(2)}, "beside": (HOSTILE | INERT)[kind](marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    if kind in HOSTILE:
        with pytest.raises(InputError, match="which could run code and is never loaded"):
            read_checkpoint(path)
    else:
        assert list(read_checkpoint(path).state) == ["norm.weight"]
    assert not marker.exists()


def test_records_say_what_was_asked_for() -> None:
    saved, path, named = unpickle(io.BytesIO(pickle.dumps([Call(torch.save, 1, "x"), Path("a/b"), Call])))
    assert (full_name(saved), saved.args) == ("torch.serialization.save", (1, "x"))
    assert full_name(path).startswith("pathlib")
    assert isinstance(path, Record)
    assert full_name(named) == f"{__name__}.Call"


ABUSE = {
    "state of a class": script("collections", "OrderedDict", b"}b"),
    "slots of a class": script("torch", "Tensor", b"N}\x8c\x05shape\x8c\x01xs\x86b"),
    "items of a class": script("torch", "Tensor", b"K\x01a"),
    "entries of a class": script("torch", "Tensor", b"K\x01K\x02s"),
    "state of getattr": script("builtins", "getattr", b"}\x8c\x08__code__K\x01sb"),
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "a memo as large as memory": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytes as long as memory": b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b".",
    "bytearray as long as memory": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b".",
    "text as long as memory": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b".",
    "a frame as long as memory": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b".",
    "no end": b"\x80\x02" + b"(" * 1000,
    "a name that is none": script("a\0b", "c\nd"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ABUSE)
def test_abuse_of_the_machine_is_refused_or_harmless(kind: str) -> None:
    before = dict(vars(torch.Tensor)), dict(vars(Record))
    try:
        unpickle(io.BytesIO(ABUSE[kind]))
    except Exception as error:
        assert not isinstance(error, SystemError | RecursionError)
    assert (dict(vars(torch.Tensor)), dict(vars(Record))) == before


def test_what_is_named_is_not_imported() -> None:
    name = "antigravity"
    unpickle(io.BytesIO(script(name, "fly", b")R")))
    assert name not in sys.modules
    with pytest.raises(HostilePickle, match=r"posix\.system"):
        unpickle(io.BytesIO(script("posix", "system")))


def test_content_that_holds_itself_or_doubles_is_read_once(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"model": {"norm.weight": torch.ones(2)}}
    loop["self"] = [loop, {"again": loop}]
    for _ in range(40):
        loop = {"model": loop["model"], "a": [loop] * 10, "b": {"c": loop}}
    torch.save(loop, tmp_path / "sit.pth")
    assert list(read_checkpoint(tmp_path / "sit.pth").state) == ["norm.weight"]


def _rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write a checkpoint whose pickle is another, its length kept."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86", b"K\x09K\x09\x86"),  # a shape beyond its storage
        (b"K\x03K\x01\x86", b"K\xffK\xff\x86"),  # strides
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),  # a storage that is not there
        (b"FloatStorage", b"LongsStorage"),
        (b"FloatStorage", b"HalfsStorage"),
    ],
)
def test_notes_of_tensors_that_cannot_be(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sit.pth"
    torch.save({"norm.weight": torch.ones(2, 3)}, path)
    seen: list[bytes] = []

    def change(data: bytes) -> bytes:
        seen.append(data)
        assert old in data, pickletools.dis(data)
        return data.replace(old, new, 1)

    _rewritten(path, change)
    assert seen
    with pytest.raises(InputError, match="is corrupt"):
        read_checkpoint(path)


def test_a_tensor_far_larger_than_its_values(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**40)
    torch.save({"norm.weight": huge}, tmp_path / "sit.pth")
    assert read_checkpoint(tmp_path / "sit.pth").state["norm.weight"].shape == (2**40,)
    overlapping = torch.zeros(2**20).as_strided((2**19, 2**19), (1, 1))
    torch.save({"norm.weight": overlapping}, tmp_path / "sit.pth")
    with pytest.raises(InputError, match="larger than its values"):
        read_checkpoint(tmp_path / "sit.pth")
