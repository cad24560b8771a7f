"""What a command that ends with an exception says of it: one line and an exit status."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from engines.errors import EngineError
from sit_deploy.errors import SitDeployError

TRACEBACK = "SIT_DEPLOY_TRACEBACK"  # of the environment: shows where a defect is
DEFECT = "this is a defect of sit-deploy"

_NO_MEMORY = "out of memory; take a smaller model, image, batch or --calib-images"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FULL = 1 << 16  # bytes; with fewer left, nothing more is written


def explain(error: BaseException, args: Iterable[str]) -> tuple[str, int]:
    """Return the line to print and the exit status.

    Args:
        args: of the command line; its paths are where a disk may be full.
    """
    if isinstance(error, SitDeployError | EngineError):
        return str(error), error.exit_status
    from calibration.errors import CalibrationError

    if isinstance(error, CalibrationError):
        return str(error), error.exit_status
    if isinstance(error, OSError):
        return _os_error(error, args), 2
    # of PyTorch's allocator it is a RuntimeError
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _NO_MEMORY, 2
    if full := full_places(args):  # libraries wrap what the system said in exceptions of their own
        return (
            f"no space left: {full} ({_name(error)}); free some space there or choose another output folder",
            2,
        )
    return f"{DEFECT}: {_name(error)}; please report it, with what {TRACEBACK}=1 shows", 2


def full_places(args: Iterable[str]) -> str:
    """Return which of the file systems that a command writes to are full, and what of it lies there; empty if none is."""
    places = {Path(tempfile.gettempdir()): "temporary files, TMPDIR", Path.cwd(): "the folder you are in"}
    places |= {
        Path(word.rpartition("=")[2]).absolute(): ""
        for word in args
        if not word.startswith("-") or "=" in word
    }
    found = {}
    for path, what in places.items():
        try:
            there = next(p for p in (path, *path.parents) if p.is_dir())
            if shutil.disk_usage(there).free < _FULL:
                found.setdefault(there.stat().st_dev, f"{there}{f' ({what})' if what else ''} is full")
        except (OSError, ValueError, StopIteration):  # a word that is no path
            continue
    return ", ".join(found.values())


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _os_error(error: OSError, args: Iterable[str]) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _NO_SPACE and (full := full_places(args)):
        where = f": {full}"
    remedy = {
        errno.ENOSPC: "free some space or choose another output folder",
        errno.EDQUOT: "free some space or choose another output folder",
        errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another output folder",
        errno.EACCES: "check its permissions or choose another folder",
        errno.EROFS: "choose a folder on a writable file system",
    }.get(error.errno or 0, "check the path")
    return f"{error.strerror or error}{where}; {remedy}"
