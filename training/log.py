"""The log of a run: a row of JSON for some steps and every epoch, and TensorBoard where it is asked for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from engines.install import pip_install
from engines.strict_json import parse
from sit_deploy.errors import InputError
from training.run_files import BOARD, LOG


class Log:
    """Rows of a run, one JSON object a line in log.jsonl: {"kind": "step" | "epoch" | "start", ...}."""

    def __init__(self, folder: Path, length: int = 0, tensorboard: bool = False) -> None:
        """Open the log, cut to `length` bytes: rows past a resumed state are of steps that will be taken again."""
        self.path = folder / LOG
        self.file = self.path.open("ab")
        self.file.truncate(min(length, self.length))  # nothing is left of a log that was removed
        self.board = _board(folder) if tensorboard else None

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a row.

        Args:
            kind: of the row.
            step: steps since the start of the run.
            **values: of its columns.
        """
        row = {"kind": kind, "step": step, **values}
        self.file.write((json.dumps(row) + "\n").encode())
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self.file.seek(0, 2)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(f"--tensorboard needs its package; run {pip_install('tensorboard')}") from None
    return SummaryWriter(str(folder / BOARD))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log. A line that is none is left out: curves are not worth the end of a run."""
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            row = parse(line)
            if isinstance(row, dict) and isinstance(row.get("kind"), str) and has_numbers(row, "step"):
                rows.append(row)
    return rows


def has_numbers(row: dict[str, Any], *names: str) -> bool:
    """Whether all of these are numbers of a row."""
    values = [row.get(name) for name in names]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
