"""Programs that are killed (SIGKILL) at every moment at which they change something on the disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# every change below a folder is an event; the process ends itself before the one that is asked for
_HOOK = """
import os, signal, sys
_below, _moment, _seen = sys.argv[1], int(sys.argv[2]), 0
_events = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "open"}
def _watch(event, arguments):
    global _seen
    if event not in _events or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        return
    # names that are relative to a folder's descriptor are those of a folder that is being removed
    if event in ("os.rmdir", "os.remove") or os.path.abspath(os.fsdecode(arguments[0])).startswith(_below):
        _seen += 1
        if _seen == _moment:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(_watch)
"""


def run(program: str, folder: Path, moment: int = 0) -> bool:
    """Run a Python program in a folder, and kill it before its change number `moment` on the disk; 0 lets it end.

    Returns whether it was killed.
    """
    prepare, _, work = program.rpartition("\n---\n")
    text = f"{prepare}\n{_HOOK}\n{work}"
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder), str(moment)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr
    return False


def moments(program: str, folder: Path, reset: Callable[[], object], most: int = 200) -> Iterator[int]:
    """Run a program again and again from the same start, killed at one moment later each time, until one run ends.

    Args:
        reset: makes the start.
    """
    for moment in range(1, most):
        reset()
        killed = run(program, folder, moment)
        yield moment
        if not killed:
            assert moment > 3, "it changes nothing"
            return
    raise AssertionError(f"not at its end after {most} changes")
