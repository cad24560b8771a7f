"""The command line as torchrun starts it: one process a rank, talking over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PLAIN = "from sit_deploy.cli import main; main()"


def run_ranks(
    folder: Path, *words: object, program: str = PLAIN, size: int = 2
) -> list[tuple[int, str, str]]:
    """Run a command in `size` processes in `folder`; return exit status, standard output and error of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        **{"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)],
            cwd=folder,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        streams = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *stream) for process, stream in zip(processes, streams, strict=True)]
