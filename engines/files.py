"""Files and folders that are either written whole or not there, whatever ends the program that writes them.

What is being written stands in a hidden folder beside its place, `.NAME.ID.partial`, which its writer holds locked. A run that
is killed leaves that folder; the next one to write beside it finds it unlocked, and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without: nothing is swept there
    fcntl = None  # type: ignore[assignment]

from engines.errors import EngineError

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})[0-9a-f]{8}\.partial(?P<old>\.old)?")
_LITTLE = 1 << 20  # bytes left of a disk that is full
_LONGEST = 200  # bytes of a name that fits with the rest into the 255 of a file system
_ELSEWHERE_SECONDS = (
    24 * 3600
)  # that another machine's folder has to be untouched: not every lock reaches across


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path to write to; what is written there takes the name of `target` at the end.

    On any failure, Ctrl-C included, `target` is as it was before. Of a link, the file that it leads to is replaced.

    Raises:
        EngineError: the folder of `target` does not exist or cannot be written to, or `target` is no file.
    """
    place = Path(os.path.realpath(target))
    if not place.parent.is_dir():
        raise EngineError(f"cannot write {target}: folder {place.parent} does not exist")
    if place.exists() and not place.is_file():
        what = "a folder" if place.is_dir() else "a device or a pipe"
        raise EngineError(f"cannot write {target}: it is {what}, not a file")
    try:
        with partial_folder(place) as folder, _full_disk_told(folder, target):
            yield folder / place.name
            (folder / place.name).replace(place)
    except OSError as error:
        raise EngineError(f"cannot write {target}: {error.strerror or error}") from error


@contextlib.contextmanager
def _full_disk_told(folder: Path, target: Path) -> Iterator[None]:
    """Say that the disk is full where it is: runtimes that write files themselves say that "Protobuf serialization failed".

    Raises:
        EngineError: whatever else failed, with a folder that has been written to and no space left.
    """
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):
            if any(folder.iterdir()) and shutil.disk_usage(folder).free < _LITTLE:
                raise EngineError(f"cannot write {target}: {os.strerror(errno.ENOSPC)}") from error
        raise


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`, on the same file system; it goes, however the block ends.

    Raises:
        OSError: it cannot be made.
    """
    sweep(target.parent)
    folder, lock = _make_locked(target)
    try:
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def sweep(parent: Path) -> None:
    """Remove from a folder what killed runs left in it, and put back what they had moved away and not yet replaced.

    Never touches what a living process, in another container too, is at; what cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(parent), key=lambda e: e.name, reverse=True):  # NAME.old before NAME
            match = _PARTIAL.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _clear(Path(entry.path), match)


def moved_away(folder: Path) -> Path:
    """Return where `move_in` keeps what was in the place of a partial folder's target, while it has no other way."""
    return folder.with_name(f"{folder.name}.old")


def _clear(path: Path, match: re.Match[str]) -> None:
    writer = path.with_name(path.name.removesuffix(".old"))
    left = writer.is_dir()  # else there is an .old alone: it has been replaced
    lock = _lock(writer) if left else None  # raises where somebody is at work
    if left and lock is None:
        return  # it cannot be known
    try:
        elsewhere = match["machine"] != _machine()
        if elsewhere and time.time() - path.stat().st_mtime < _ELSEWHERE_SECONDS:
            return
        target = path.with_name(match["name"])
        if match["old"] and left and not os.path.lexists(target):
            path.rename(target)  # killed between two renames
        else:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _make_locked(target: Path) -> tuple[Path, int | None]:
    """Make a partial folder and hold it; the lock goes with the process, however that ends. None: there are no locks."""
    name = target.name if len(os.fsencode(target.name)) <= _LONGEST else target.name[: _LONGEST // 4]
    while True:
        folder = target.with_name(f".{name}.{_machine()}{secrets.token_hex(4)}.partial")
        folder.mkdir()
        # another run may take it for a dead one's before it is held
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(folder)
            if lock is None or folder.is_dir():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds a folder; None where the file system has no such locks.

    Raises:
        BlockingIOError: another has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _machine() -> str:
    """Eight hexadecimal digits that stand for this run of this machine, the same in each of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        import hashlib
        import platform

        return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def move_in(folder: Path, destination: Path, replace: bool) -> None:
    """Put a partial folder in the place of `destination`, in one step where the system can.

    Args:
        folder: the partial one.
        destination: its place.
        replace: what stands there, too; otherwise nothing, or an empty folder, is.

    Raises:
        FileExistsError: something is there.
        OSError: it cannot be moved.
    """
    try:
        folder.rename(destination)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination)) from None
    if exchange(folder, destination):
        return  # what was there goes with the partial folder
    old = moved_away(folder)
    destination.rename(old)
    try:
        folder.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Let two files or folders change places in one step, so that nobody ever sees one of them missing.

    Returns whether the system and the file system can (Linux: renameat2 with RENAME_EXCHANGE).

    Raises:
        OSError: they can, and it failed.
    """
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, flags = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):  # EPERM: a sandbox's answer
        return False
    raise OSError(number, os.strerror(number), str(first))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, of those that name the same folder, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and its like for a moment: a second press must not stop the cleaning up after the first."""
    if threading.current_thread() is not threading.main_thread():  # they never reach another thread
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
