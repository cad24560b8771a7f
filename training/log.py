"""What a run leaves to look at: a JSONL log, TensorBoard where asked for, and a picture of the curves."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from engines.files import atomic_path
from engines.strict_json import parse
from sit_deploy.errors import InputError

LOG = "log.jsonl"
CURVES = "curves.png"
BOARD = "tensorboard"


class Log:
    """Rows of a run, one JSON object a line in log.jsonl: {"kind": "step" | "epoch" | "start", ...}."""

    def __init__(self, folder: Path, length: int = 0, tensorboard: bool = False) -> None:
        """Open the log, cut to `length` bytes: rows past a resumed state are of steps that will be taken again."""
        self.path = folder / LOG
        self.file = self.path.open("ab")
        self.file.truncate(min(length, self.length))  # nothing is left of a log that was removed
        self.board = _board(folder) if tensorboard else None

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Add a row. step: steps since the start of the run."""
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
        raise InputError("--tensorboard needs its package; pip install tensorboard") from None
    return SummaryWriter(str(folder / BOARD))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log. A line that is none is left out: curves are not worth the end of a run."""
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            row = parse(line)
            if isinstance(row, dict) and isinstance(row.get("kind"), str) and _has(row, "step"):
                rows.append(row)
    return rows


def _has(row: dict[str, Any], *names: str) -> bool:
    """Whether all of these are numbers of a row."""
    values = [row.get(name) for name in names]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def draw_curves(folder: Path, title: str, teacher_top1: float | None = None) -> Path:
    """Draw the loss of the steps and the accuracy of the epochs of a folder's log; return the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(folder / LOG)
    steps = [r for r in rows if r["kind"] == "step"]
    epochs = [r for r in rows if r["kind"] == "epoch" and _has(r, "epoch", "top1")]
    per_epoch = max((r["step"] / r["epoch"] for r in epochs if r["epoch"]), default=1) or 1
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = ("loss", "classification", "tokens", "logits", "hard")
    for name in (n for n in losses if any(_has(r, n) for r in steps)):
        having = [r for r in steps if _has(r, name)]
        left.plot([r["step"] / per_epoch for r in having], [r[name] for r in having], label=name, linewidth=1)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    left.legend()
    right.plot([r["epoch"] for r in epochs], [r["top1"] for r in epochs], marker=".", label="top-1")
    if teacher_top1 is not None:
        right.axhline(teacher_top1, color="grey", linestyle="--", label="teacher")
    right.set(xlabel="epoch", ylabel="top-1 on held-out images, %")
    low, high = right.get_ylim()
    right.set_ylim(max(low, -1.0), min(high, 101.0))  # no marks beyond 0 and 100 % where all epochs are alike
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    path = folder / CURVES
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
    finally:
        pyplot.close(figure)
    return path
