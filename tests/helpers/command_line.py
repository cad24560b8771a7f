"""Runs the real command line, in this process or in one of its own, and holds it to the rules for bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from sit_deploy.cli.failures import DEFECT

# what a finished step prints where standard error is no terminal: `Exporting to ONNX (2.4 s)`
_PROGRESS = re.compile(r".+ \(\d+\.\d s\)")

# what PyTorch and ONNX Runtime leave in the system's folder for temporary files when they are imported
_CACHES = re.compile(r"tmp/(torchinductor_.*|\.ses)")

Snapshot = dict[str, tuple[int, ...]]


def snapshot(folder: Path) -> Snapshot:
    """Return every file and folder below `folder`, hidden ones included, with what changes when it is written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, stat = str(path.relative_to(folder)), path.lstat()
        if not _CACHES.fullmatch(name):
            found[name] = () if path.is_dir() else (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


@dataclass(frozen=True)
class Result:
    """A finished command: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines of standard error that are no progress."""
        return [line for line in self.err.splitlines() if not _PROGRESS.fullmatch(line)]

    def json(self) -> Any:
        """Parse standard output, which must be JSON and nothing else, without NaN or infinity."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    def the_error(self) -> str:
        """Return the message of a refusal: the one line of standard error besides progress, after `Error: `."""
        assert self.out == ""
        assert "Traceback" not in self.err and DEFECT not in self.err
        (line,) = self.complaints
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")

    def usage_error(self) -> str:
        """Return the message of a usage error, which click prints after the usage and a hint."""
        assert (self.status, self.out) == (2, "")
        usage, hint, blank, line = self.err.splitlines()
        assert usage.startswith("Usage: sit-deploy") and hint.startswith("Try ") and not blank
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")


class CommandLine:
    """`sit-deploy` with `folder` as its working directory. Its temporary folders are made in `folder`/tmp."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd

    def __call__(self, *words: object, status: int | None = 0) -> Result:
        """Run a command in this process; `status` is the one it must have, None any."""
        from sit_deploy.cli import main

        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        result = Result(int(ended.value.code or 0), *self._capfd.readouterr())
        assert DEFECT not in result.err
        assert status is None or result.status == status, result.err
        return result

    def refuses(self, *words: object, status: int = 2) -> str:
        """Run a command that must end with `status`, one line and nothing changed on disk; return that line."""
        before = snapshot(self.folder)
        message = self(*words, status=status).the_error()
        assert snapshot(self.folder) == before
        return message

    def process(self, *words: object, program: str | None = None, **environment: str) -> Result:
        """Run a command in a process of its own. `program`: Python to run instead of the plain command line."""
        code = program or "from sit_deploy.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.folder / "tmp"), **environment},
            capture_output=True,
            text=True,
            # in the background of a script a process is born with Ctrl-C ignored, and so would be its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return Result(done.returncode, done.stdout, done.stderr)


def context_of(command: click.Command, words: list[str]) -> click.Context:
    """Return a command's context for the words behind its name, made as below `sit-deploy`.

    A command keeps the help option of its first context: made without the group's settings, it would lose -h for all that follow.
    """
    from sit_deploy.cli import cli

    return command.make_context(command.name, words, **cli.context_settings)
