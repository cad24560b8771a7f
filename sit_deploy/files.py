"""Files that commands write, whole or not at all, in words that name the option."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engines.files import move_in, partial_folder, sweep, uninterrupted
from sit_deploy.errors import InputError
from sit_deploy.hashes import sha256

__all__ = [
    "check_output",
    "place",
    "recover",
    "remove_empty",
    "scratch",
    "sha256",
    "uninterrupted",
    "whole_file",
    "write_whole",
]


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `path`; it goes, with any parents made for it, however the block ends.

    Raises:
        InputError: the folder cannot be made.
    """
    path = path.absolute()
    missing = [p for p in path.parents if not p.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, missing)  # those that something was put into stay
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(partial_folder(path))
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write to {path.parent} ({reason}); choose another -o") from None
        yield folder


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some folders that nothing is in, the innermost first."""
    with uninterrupted():
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def place(folder: Path, destination: Path, replace: bool = False) -> None:
    """Move a folder of `scratch` to its place, where nothing is but an empty folder or, with `replace`, what gives way.

    Raises:
        InputError: something else is there.
    """
    try:
        with uninterrupted():
            move_in(folder, destination.absolute(), replace)
    except FileExistsError:
        raise InputError(
            f"output {destination} was made by another program meanwhile, and is left as it is; choose another -o"
        ) from None


def recover(path: Path) -> None:
    """Bring back a folder that a run was killed at the moment of replacing, if it is gone from its place."""
    if not os.path.lexists(path):
        sweep(path.absolute().parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file to; it takes the place of `path` when the block ends well. Of a link, the file that it leads to is replaced.

    Files that are written beside it meanwhile go with the block.

    Raises:
        InputError: its folder cannot be written, or it is a folder, a device or a pipe.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        raise InputError(f"output {path} is not a file; choose another -o")
    with scratch(real) as folder:
        yield folder / real.name
        (folder / real.name).replace(real)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; links and errors as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output(path: Path, force: bool) -> None:
    """Refuse, before any work, a file that cannot be written.

    Raises:
        InputError: its folder is missing or not writable, or it is there already.
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"folder {folder} does not exist or cannot be written; choose another with -o")
    if path.is_dir() or (path.exists() and not force):
        what = "is a folder;" if path.is_dir() else "exists; pass --force to replace it, or"
        raise InputError(f"output {path} {what} choose another -o")
