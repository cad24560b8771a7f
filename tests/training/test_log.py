"""What a run leaves to look at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sit_deploy.errors import InputError
from training.log import Log, read_log


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
    with pytest.raises(
        InputError, match=r"^--tensorboard needs its package; run `.*pip install 'tensorboard>=.*'`$"
    ):
        Log(tmp_path, tensorboard=True)
    Log(tmp_path).close()
