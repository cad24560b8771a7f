"""What a command that ends with an exception says of it: one line and an exit status."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sit_deploy.errors import Error
from sit_deploy.text import file_size, shortened

TRACEBACK = "SIT_DEPLOY_TRACEBACK"  # of the environment: shows where a defect is
DEFECT = "this is a defect of sit-deploy"

_LONGEST_PATH = 300  # characters of one that are shown
_NO_MEMORY = "out of memory; take a smaller model, image, batch or --calib-images"
_FREE_SOME = "free some space there or choose another output folder"


def explain(error: BaseException, args: Iterable[str]) -> tuple[str, int]:
    """Return the line to print and the exit status.

    Args:
        error: what ended the command.
        args: of the command line; its paths are where a disk may be full.
    """
    if isinstance(error, Error):
        return str(error), error.exit_status
    if isinstance(error, OSError):
        return _os_error(error, args), 2
    # of PyTorch's allocator it is a RuntimeError
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _NO_MEMORY, 2
    if _is_full(error):  # libraries wrap what the system said in exceptions of their own
        return f"{_no_space(error, args)} ({_name(error)}); {_FREE_SOME}", 2
    return f"{DEFECT}: {_name(error)}; please report it, with what {TRACEBACK}=1 shows", 2


def unwritten(error: OSError) -> str:
    """Return the line for standard output that could not be written."""
    remedy = ", or free some space there" if _is_full(error) else ""
    return (
        f"standard output could not be written ({error.strerror or error}), and what was written to files is whole; send the output "
        f"elsewhere{remedy}"
    )


def _is_full(error: BaseException) -> bool:
    """Whether it tells of a full disk. PyTorch's writer of archives never says why it fails."""
    message = str(error)
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return no_space or any(
        words in message for words in ("No space left", "quota exceeded", "PytorchStreamWriter")
    )


def _no_space(error: BaseException, args: Iterable[str]) -> str:
    """Return where there is how little left, the fullest first: what was half-written may have gone again meanwhile."""
    written = getattr(error, "filename2", None) or getattr(error, "filename", None)
    writes_to = [written or Path.cwd()]
    places = {Path(tempfile.gettempdir()): " (temporary files, TMPDIR)"}
    for word in [*writes_to, *args]:
        if not str(word).startswith("-") or "=" in str(word):
            places.setdefault(Path(str(word).rpartition("=")[2]).absolute(), "")
    left: dict[int, tuple[int, str]] = {}
    for path, what in places.items():
        try:
            there = next(p for p in (path, *path.parents) if p.is_dir())
            free = shutil.disk_usage(there).free
            left.setdefault(there.stat().st_dev, (free, f"{file_size(free)} left for {there}{what}"))
        except (OSError, ValueError, StopIteration):  # a word that is no path
            continue
    return f"No space left on device{f' ({written})' if written else ''}: " + ", ".join(
        text for _, text in sorted(left.values())
    )


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _os_error(error: OSError, args: Iterable[str]) -> str:
    if isinstance(error, shutil.Error):  # of a copy of many files: a list of what failed
        source, target, reason = error.args[0][0]
        if not _is_full(error):
            return f"cannot copy {source} to {target} ({reason}); check the path"
        error = OSError(errno.ENOSPC, "", target)
    if _is_full(error):
        return f"{_no_space(error, args)}; {_FREE_SOME}"
    where = f" ({shortened(str(error.filename), _LONGEST_PATH)})" if error.filename else ""
    remedy = {
        errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another output folder",
        errno.EACCES: "check its permissions or choose another folder",
        errno.EROFS: "choose a folder on a writable file system",
        errno.EPIPE: "a process that it had started has gone, perhaps for lack of memory; run it again",
    }.get(error.errno or 0, "check the path")
    return f"{error.strerror or error}{where}; {remedy}"
