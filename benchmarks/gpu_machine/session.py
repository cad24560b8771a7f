"""A session on the GPU machine: its folders and its time, and commands that end before that does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GRACE = 15.0  # seconds that a process has to write its results after it was interrupted
CRASHES = 5  # tests that may bring their process down before the rest is given up


class StepFailed(Exception):  # noqa: N818 - an outcome
    """A step cannot go on; its message is its result."""


@dataclass(frozen=True)
class Session:
    """One call of the script.

    Attributes:
        kit: folder of the script, and of what came along with it.
        root: the project's.
        home: what is kept from one call to the next: packs, bundles, caches.
        out: what is brought back.
        deadline: when the last step must have ended, by `time.perf_counter`.
    """

    kit: Path
    root: Path
    home: Path
    out: Path
    deadline: float

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line, and keep it in the log."""
        print(text, flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def environment(self, *packs: str) -> dict[str, str]:
        """Return the variables that product and tests run with: packs first, caches outside the tree, no network."""
        sites = [self.home / pack / "site" for pack in (*packs, "pinned")]
        paths = [*(site for site in sites if site.is_dir()), self.root]
        if is_missing("rich"):
            paths += sorted(self.kit.glob("*.whl"))  # of pure Python: they are imported as they are
        return {
            **os.environ,
            "PYTHONPATH": ":".join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SIT_DEPLOY_CACHE": str(self.home / "cache"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        }

    def run(
        self, words: Sequence[object], seconds: float, env: dict[str, str] | None = None
    ) -> tuple[int | None, str]:
        """Run a command in a group of its own, interrupted when its time is up and killed if that does not end it.

        Args:
            words: of the command.
            seconds: that it may take; it has `GRACE` more to write what it has.
            env: its variables; those of this process by default.

        Returns:
            Its status, None where its time was up, and its output, which is in the log too.
        """
        command = [str(word) for word in words]
        shown = " ".join(command).replace(str(self.home), "~/gpu").replace(sys.executable, "python3")
        self.say(f"$ {shown}")
        started = time.perf_counter()
        path = self.out / "log.txt"
        with path.open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )
            try:
                status: int | None = process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                status = None
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            kill_group(process)
            process.wait()
        with path.open("rb") as log:
            log.seek(start)
            text = log.read().decode(errors="replace")
        self.say(f"  -> {_outcome(status)} after {time.perf_counter() - started:.0f} s")
        return status, text

    def ask(self, words: Sequence[object], seconds: float, env: dict[str, str]) -> dict[str, Any]:
        """Run a job of `benchmarks.gpu_machine.jobs`; return the object on its last line, or {"failed": why}."""
        status, text = self.run(words, seconds, env)
        lines = [line for line in text.splitlines() if line.strip()]
        for line in reversed(lines):
            if line.startswith('{"'):
                with contextlib.suppress(ValueError):
                    return json.loads(line)
        return {"failed": f"{_outcome(status)}: {lines[-1][:400] if lines else 'no output'}"}

    def pytest(
        self, python: object, words: Sequence[object], name: str, seconds: float, env: dict[str, str]
    ) -> dict[str, Any]:
        """Run tests; one that brings the process down is left out, and the rest runs again.

        Args:
            python: what runs them.
            words: files and options.
            name: of the result: tests-NAME.xml.
            seconds: that all of it may take.
            env: variables.
        """
        stop = time.perf_counter() + seconds
        crashed: list[str] = []
        while True:
            skipped = [f"--deselect={test}" for test in crashed]
            report = f"--junitxml={self.out / f'tests-{name}.xml'}"
            command = [python, "-m", "pytest", *words, *skipped, report]
            status, text = self.run(command, stop - time.perf_counter(), env)
            started = [
                line.split(" ")[0] for line in text.splitlines() if line.startswith("tests/") and "::" in line
            ]
            died = status is not None and status < 0 and bool(started)
            if not died or len(crashed) == CRASHES or stop - time.perf_counter() < 20:
                break
            crashed.append(started[-1])
        lines = text.splitlines()
        counts = (
            line.strip("= ") for line in reversed(lines) if " in " in line and any(map(str.isdigit, line))
        )
        return {
            "status": status,
            "counts": next(counts, None) or error_line(text),
            "crashed": crashed,
            "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
        }


def is_missing(package: str) -> bool:
    """Say whether a package cannot be imported here; it is not imported."""
    try:
        return find_spec(package) is None
    except (ImportError, ValueError):
        return True


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process that was started in a session of its own, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def error_line(text: str) -> str:
    """Return the last line that names an error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")


def _hear_interrupts() -> None:
    # what a script starts in the background ignores SIGINT, and its children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _outcome(status: int | None) -> str:
    if status is None:
        return "out of time"
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"status {status}"
