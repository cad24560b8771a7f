"""What a test run makes once for all of its processes: files and values on disk, behind a lock."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Value = TypeVar("Value")


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of the whole test run, the same for all of pytest-xdist's workers."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a file or folder that the first process to ask makes; the others wait for it. Do not write into it.

    Args:
        factory: pytest's, for the folder of the run.
        name: of the file or folder, of its own in the whole suite.
        make: called with the path, at which there is nothing yet. What it leaves there counts only once it has returned,
            so that after a failure the next process starts from nothing. It may use other shared things, but not in a circle.
    """
    from filelock import FileLock  # here, for the tests of a GPU machine that lacks it

    folder = run_folder(factory) / "shared"
    folder.mkdir(exist_ok=True)
    path, complete = folder / name, folder / f"{name}.complete"
    maker = getattr(make, "__qualname__", type(make).__name__)
    with FileLock(f"{complete}.lock"):
        if not complete.exists():
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            make(path)
            complete.write_text(maker)
        assert complete.read_text() == maker, f"{name} is the name of two things: of {maker}, too"
    return path


def shared_value(factory: pytest.TempPathFactory, name: str, make: Callable[[], Value]) -> Value:
    """Return a value that the first process to ask computes; each process gets a copy of its own, by pickle."""
    path = shared(factory, f"{name}.pickle", lambda file: file.write_bytes(pickle.dumps(make())))
    return pickle.loads(path.read_bytes())
