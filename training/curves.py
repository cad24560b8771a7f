"""The picture of a run's curves: the loss of its steps and the accuracy of its epochs."""

from __future__ import annotations

from pathlib import Path

from engines.files import atomic_path
from training.log import has_numbers, read_log
from training.run_files import CURVES, LOG


def draw_curves(folder: Path, title: str, teacher_top1: float | None = None) -> Path:
    """Draw the loss of the steps and the accuracy of the epochs of a folder's log; return the PNG's path."""
    from matplotlib.figure import Figure  # no pyplot, whose state and backend are the caller's

    rows = read_log(folder / LOG)
    steps = [r for r in rows if r["kind"] == "step"]
    epochs = [r for r in rows if r["kind"] == "epoch" and has_numbers(r, "epoch", "top1")]
    per_epoch = max((r["step"] / r["epoch"] for r in epochs if r["epoch"]), default=1) or 1
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = ("loss", "classification", "tokens", "logits", "hard", "hard_label")
    for name in (n for n in losses if any(has_numbers(r, n) for r in steps)):
        having = [r for r in steps if has_numbers(r, name)]
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path
