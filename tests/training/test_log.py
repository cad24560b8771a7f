"""What a run leaves to look at."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.errors import InputError
from training.log import LOG, Log, draw_curves, read_log


def test_rows_are_read_back(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("epoch", 0, epoch=0, top1=10.5)
    log.write("step", 1, loss=2.25, lr=1e-4)
    log.close()
    assert read_log(tmp_path / "log.jsonl") == [
        {"kind": "epoch", "step": 0, "epoch": 0, "top1": 10.5},
        {"kind": "step", "step": 1, "loss": 2.25, "lr": 1e-4},
    ]


def test_a_row_is_on_disk_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("step", 1, loss=1.0)
    assert len(read_log(log.path)) == 1 and log.length == log.path.stat().st_size > 10
    log.close()


def test_a_resumed_log_is_cut_to_what_belongs_to_the_state(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(3):
        log.write("step", step, loss=float(step))
    kept = log.length
    log.write("step", 3, loss=99.0)  # of a step that is taken again
    log.file.write(b'{"kind": "st')  # and a row that was cut off
    log.close()
    log = Log(tmp_path, kept)
    assert log.length == kept
    log.write("step", 3, loss=3.0)
    log.close()
    assert [row["loss"] for row in read_log(log.path)] == [0, 1, 2, 3]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("left over\n")
    Log(tmp_path).close()
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_log_that_was_removed_starts_anew(tmp_path: Path) -> None:
    log = Log(tmp_path, 500)
    log.write("step", 40, loss=1.0)
    log.close()
    assert read_log(log.path) == [{"kind": "step", "step": 40, "loss": 1.0}]


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


def test_curves_of_a_log_without_a_step(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    log = Log(tmp_path)
    log.write("epoch", 0, epoch=0, top1=10.0)
    log.close()
    assert drawn(tmp_path).std() > 0


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, tensorboard=True)
    for step in (5, 10):
        log.write("step", step, loss=step / 4)
    log.write("epoch", 10, top1=50.0, name="no figure")
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/top1", "step/loss"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [(5, 1.25), (10, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("epoch/top1")] == [(10, 50.0)]


def test_tensorboard_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"^--tensorboard needs its package; pip install tensorboard$"):
        Log(tmp_path, tensorboard=True)
    Log(tmp_path).close()


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
