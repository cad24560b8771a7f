"""Files and folders that are written beside their place and moved there whole, whatever ends the work on them."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from sit_deploy.errors import InputError


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `path`; it goes, with any parents made for it, however the block ends.

    Raises:
        InputError: the folder cannot be made.
    """
    path = path.absolute()
    made = [p for p in path.parents if not p.exists()]
    folder = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write to {path.parent} ({reason}); choose another -o") from None
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:  # those that something was put into stay
                with contextlib.suppress(OSError):
                    parent.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: its folder cannot be written.
    """
    with scratch(path) as folder:
        temporary = folder / path.name
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


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


def swap(folder: Path, destination: Path) -> None:
    """Put `folder` in the place of `destination`, which may be absent, empty or a bundle."""
    if not destination.exists():
        folder.rename(destination)
        return
    old = folder.with_name(folder.name + ".old")
    destination.rename(old)
    try:
        folder.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
