"""Packs: archives of packages that the machine lacks, cut into parts small enough to be carried there.

parts.json, beside the script, lists the parts of each pack: {pack: [{"file": name, "sha256": of it}, ...]}. The parts lie in the
folder above. A pack is a .tar.xz with a folder `site` of packages for this Python, or with a Python of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import time
from pathlib import Path

from benchmarks.gpu_machine.session import Session, StepFailed


class _Joined(io.RawIOBase):
    """Several files, read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._left = list(paths)
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._file is None:
                if not self._left:
                    return 0
                self._file = self._left.pop(0).open("rb")
            if count := self._file.readinto(buffer):
                return count
            self._file.close()
            self._file = None


def unpack_complete(session: Session) -> None:
    """Keep the parts that came with this call, and unpack every pack whose parts are all there.

    Raises:
        StepFailed: a part came damaged, or a pack is no archive, or one that writes elsewhere; it is dropped, and the others are unpacked.
    """
    listing = session.kit / "parts.json"
    if not listing.is_file():
        return
    kept, broken = session.home / "parts", list[str]()
    kept.mkdir(parents=True, exist_ok=True)
    for pack, parts in json.loads(listing.read_text(encoding="utf-8")).items():
        for part in parts:
            carried = session.kit.parent / part["file"]
            if carried.is_file():
                shutil.move(carried, kept / part["file"])
        if (session.home / pack).is_dir():
            continue
        paths = [kept / part["file"] for part in parts]
        count = sum(path.is_file() for path in paths)
        if count < len(paths):
            session.say(f"{pack}: {count} of {len(paths)} parts are here")
            continue
        try:
            _require_whole(pack, paths, parts)
            _unpack(session, pack, paths)
        except StepFailed as error:
            broken.append(str(error))
    if broken:
        raise StepFailed("; ".join(broken))


def _require_whole(pack: str, paths: list[Path], parts: list[dict[str, str]]) -> None:
    for path, part in zip(paths, parts, strict=True):
        if hashlib.sha256(path.read_bytes()).hexdigest() != part["sha256"]:
            path.unlink()
            raise StepFailed(f"{pack}: {path.name} came damaged and was dropped; carry it again")


def _unpack(session: Session, pack: str, paths: list[Path]) -> None:
    started, partial = time.perf_counter(), session.home / f"{pack}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Joined(paths), 1 << 20), mode="r|xz") as archive:
            archive.extractall(partial, filter="data")  # nothing outside of it, and no links that lead there
        partial.rename(session.home / pack)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        for path in paths:
            path.unlink(missing_ok=True)
        raise StepFailed(f"{pack}: cannot be unpacked ({error}) and was dropped; make it again") from error
    except OSError as error:
        raise StepFailed(f"{pack}: cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    session.say(f"{pack}: unpacked in {time.perf_counter() - started:.0f} s")


def require(session: Session, pack: str) -> Path:
    """Return the folder of a pack.

    Raises:
        StepFailed: it is not there, or not all of it.
    """
    if not (session.home / pack).is_dir():
        raise StepFailed(f"the pack {pack} is not here; carry all its parts (a fresh machine has lost them)")
    return session.home / pack
