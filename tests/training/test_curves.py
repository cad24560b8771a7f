"""The picture of a run's curves: it follows the log, whatever else is in that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.curves import draw_curves
from training.log import Log, read_log
from training.run_files import LOG


def write_run(folder: Path, **losses: float) -> None:
    log = Log(folder)
    log.write("epoch", 0, epoch=0, top1=10.0)
    for epoch in range(1, 4):
        for step in range(10 * epoch - 9, 10 * epoch + 1, 3):
            log.write("step", step, **{name: value / step for name, value in losses.items()}, lr=1e-4)
        log.write("epoch", 10 * epoch, epoch=epoch, top1=20.0 * epoch)
    log.close()


def drawn(folder: Path, teacher: float | None = None) -> np.ndarray:
    path = draw_curves(folder, "sit_nano on digits", teacher)
    assert path == folder / "curves.png"
    image = Image.open(path)
    assert image.format == "PNG" and image.size == (1200, 480)
    return np.asarray(image.convert("RGB"))


def test_curves_are_a_picture_that_follows_the_figures(tmp_path: Path) -> None:
    write_run(tmp_path, loss=2.0, classification=1.0, tokens=0.5, logits=0.5)
    plain = drawn(tmp_path)
    assert plain.std() > 10 and (drawn(tmp_path) == plain).all()
    left, right = np.split(drawn(tmp_path, teacher=70.0) != plain, 2, axis=1)
    assert right.any() and not left.any()  # the teacher's line is drawn beside the accuracy
    (other := tmp_path / "other").mkdir()
    write_run(other, loss=7.0, classification=1.0, tokens=0.5, logits=0.5)
    assert np.split(drawn(other) != plain, 2, axis=1)[0].any()


def test_the_programs_own_plots_are_left_alone(tmp_path: Path) -> None:
    """In a notebook a backend that was changed shows no figure from there on, and says nothing."""
    import matplotlib
    from matplotlib import pyplot

    write_run(tmp_path, loss=2.0)
    before = matplotlib.rcParams["backend"]
    pyplot.switch_backend("svg")
    try:
        mine = pyplot.figure()
        drawn(tmp_path)
        assert matplotlib.get_backend() == "svg"
        assert pyplot.get_fignums() == [mine.number] and pyplot.gcf() is mine
    finally:
        pyplot.close("all")
        pyplot.switch_backend(before)


def test_curves_of_a_log_without_a_step(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    log = Log(tmp_path)
    log.write("epoch", 0, epoch=0, top1=10.0)
    log.close()
    assert drawn(tmp_path).std() > 0


def test_a_log_with_other_lines_is_drawn_all_the_same(tmp_path: Path) -> None:
    """Cut off by a kill, or edited: the run that ends with its curves is worth more than they are."""
    rows = [
        b'{"kind": "step", "step": 1, "loss": 2.0}',
        b'{"kind": "step", "step": 2, "loss": "low"}',
        b'{"kind": "step", "loss": 2.0}',
        b'{"kind": ["step"], "step": 3}',
        b'{"kind": "epoch", "step": 9, "epoch": 1, "top1": 50.0}',
        b'{"kind": "epoch", "step": 9}',
        b"[1]", b"[" * 10_000, b"\xff", b"", b'{"kind": "step", "st',
    ]  # fmt: skip
    (tmp_path / LOG).write_bytes(b"\n".join(rows))
    assert [row["step"] for row in read_log(tmp_path / LOG)] == [1, 2, 9, 9]
    assert draw_curves(tmp_path, "t").stat().st_size > 1000
