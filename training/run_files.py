"""The files of a run: their names, and its folder, locked for one run at a time.

What a run that was killed had begun to write is swept; one that never began leaves nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.files import sweep
from sit_deploy.errors import InputError
from sit_deploy.processes import World

WEIGHTS = "model.safetensors"  # the best so far
CARD = "model.json"
SUMMARY = "summary.json"
LAST = "last.pt"  # the state that a run is resumed from
LOG = "log.jsonl"
CURVES = "curves.png"
BOARD = "tensorboard"
LOCK = ".lock"
# what this package writes: under a name of its own first, and so left as that by a kill
WRITTEN = (LAST, WEIGHTS, CARD, SUMMARY)

_held: set[int] = set()  # descriptors of locks, which a forked process must not keep alive


def _let_go() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


# A loader's worker would hold the lock for as long as it outlives a run that is killed.
os.register_at_fork(after_in_child=_let_go)


class RunFolder:
    """The output folder of a run, from before it is looked at until the run ends."""

    def __init__(self, path: Path) -> None:
        names = (LOG, BOARD, WEIGHTS, CARD)
        places = (*reversed(path.parents), path, *(path / name for name in names))
        self.path = path
        self.absent = [place for place in places if not place.exists()]

    def sweep(self) -> None:
        """Remove what a run that was killed had begun to write; whoever calls this holds the lock.

        Raises:
            InputError: it cannot be written to.
        """
        sweep(self.path)
        try:
            for name in WRITTEN:
                for leftover in (*self.path.glob(f".{name}.partial"), *self.path.glob(f".{name}.*.tmp")):
                    if leftover.is_file():
                        leftover.unlink()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def clear_away(self) -> None:
        """Remove what a run has written that ended before its first state was saved."""
        if (self.path / LAST).exists():
            return
        for place in reversed(self.absent):
            with suppress(OSError):  # not there, or a folder that somebody else has put something into
                if place.name == BOARD:
                    shutil.rmtree(place)
                elif place.is_dir():
                    place.rmdir()
                else:
                    place.unlink()


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error of a file that cannot be written."""
    return InputError(f"cannot write to {path} ({error.strerror or error}); choose another -o")


@contextmanager
def locked_run_folder(path: Path, world: World) -> Iterator[tuple[RunFolder, str | None]]:
    """Hold a run's folder: no other run, of this program on any machine that sees the lock, is in it meanwhile.

    The main process takes the lock, for all processes of the training; the kernel releases it however that ends.

    Yields:
        The folder, and what to say where the file system has no locks.

    Raises:
        InputError: on every process alike: another run is in it, or it cannot be written to.
    """
    folder = RunFolder(path)
    descriptor, note, refusal = None, None, None
    if world.is_main:
        try:
            descriptor, note = _lock(path)
            if descriptor is not None:
                folder.sweep()
        except InputError as error:
            refusal = str(error)
    try:
        refusal = world.gather(refusal)[0]
        if refusal is not None:
            raise InputError(refusal)
        yield folder, note
    finally:
        if descriptor is not None:
            with suppress(OSError):
                (path / LOCK).unlink()
            _held.discard(descriptor)
            os.close(descriptor)
        if world.is_main:
            _remove_empty(folder)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold a folder that runs are made in, as `locked_run_folder` does that of one.

    Raises:
        InputError: another run is in it, or it cannot be written to.
    """
    import torch

    with locked_run_folder(path, World(0, 1, torch.device("cpu"))):
        yield


def _remove_empty(folder: RunFolder) -> None:
    """Remove the folders that were made for a run that has left nothing in them."""
    for place in reversed(folder.absent):
        if place == folder.path or place in folder.path.parents:
            with suppress(OSError):  # not empty
                place.rmdir()


def _lock(path: Path) -> tuple[int | None, str | None]:
    """Return the descriptor that holds the lock of a folder, or what to say where there can be none."""
    import fcntl

    file = path / LOCK
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise InputError(
                f"{path} is in use by another run{f' ({owner})' if owner else ''}; wait for its end, or choose another -o"
            ) from None
        except OSError as error:  # of a file system over a network, mounted without locks
            os.close(descriptor)
            with suppress(OSError):
                file.unlink()
            return None, (
                f"{path} is on a file system without locks ({error.strerror or error}): nothing will keep a second run out of it"
            )
        if _is(descriptor, file):
            break
        os.close(descriptor)  # its last holder removed it between our opening and locking it
    _held.add(descriptor)
    os.ftruncate(descriptor, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    return descriptor, None


def _is(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
