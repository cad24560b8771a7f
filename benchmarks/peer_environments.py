"""Virtual environments of tools to compare with, whose requirements would not fit beside ours, and processes in them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"


def environment(who: str, work: Path) -> Path:
    """Return the Python of a peer's environment, made where it is not there yet, and whole or not at all.

    Raises:
        RuntimeError: its packages cannot be installed.
    """
    folder = work / f"env-{who}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        try:
            run([str(python), "-m", "pip", "install", "-q", "-r", str(PEERS / f"requirements-{who}.txt")])
        except BaseException:
            shutil.rmtree(folder)
            raise
    return python


def run(command: list[str]) -> tuple[float, int]:
    """Run a command; return its wall seconds and peak resident memory in bytes.

    Raises:
        RuntimeError: it failed; the text is the last line it wrote to standard error.
    """
    with tempfile.TemporaryFile() as messages:
        started, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=messages)
        while process.poll() is None:
            # not wait4's maximum, which begins with what this process had when it forked
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(said[-1] if said else f"exit status {process.returncode}")
    return seconds, peak


def peak_memory(pid: int) -> int:
    """Return the most resident memory a process has had, in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    # Linux counts in KiB
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
