"""The script that will run on a GPU, tried on a CPU through the same code, and what it makes of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu_cells import Candidate, Cell, time_turn_about

CPU = torch.device("cpu")


def cell(model: str, runtime: str, batch: int, *medians: float) -> Cell:
    return Cell(model, runtime, batch, None, [[m] for m in medians], [[m] for m in medians])


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path):
    path = tmp_path / "result.json"
    words = "--device cpu --models sit_nano,lvvit_nano --batches 1,2 --seconds 0.03 --no-compile --output"
    done = CliRunner().invoke(gpu.main, [*words.split(), str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(path.read_text())
    assert result["complete"] and result["low_type"] == "bfloat16"
    timed = [c for c in result["cells"] if not c["skipped"]]
    assert [(c["model"], c["batch"], c["runtime"]) for c in timed] == [
        (model, batch, "pytorch eager") for model in ("sit_nano", "lvvit_nano") for batch in (1, 2)
    ]
    for c in timed:
        assert c["device"]["p50_ms"] <= c["device"]["p99_ms"] and c["images_per_second"] > 0
        assert c["share_of_peak"] > 0 and len(c["round_medians_ms"]) == 3
    assert {c["skipped"] for c in result["cells"] if c["skipped"]} == {"--no-compile"}
    assert [row["model"] for row in result["over_teachers"]] == ["sit_nano"] * 2
    assert all(row["met"] is None for row in result["targets"])
    assert set(result["runtimes_skipped"]) == {"tensorrt", "tensorrt-rtx"}
    assert "| sit_nano | lvvit_nano | pytorch eager | 2 |" in done.output


@pytest.mark.slow
def test_the_paper_s_protocol_on_a_cpu(tmp_path: Path):
    words = f"--device cpu --protocol levit --models sit_nano --batches 2 --seconds 0.03 --output {tmp_path / 'r.json'}"
    assert CliRunner().invoke(gpu.main, words.split(), catch_exceptions=False).exit_code == 0
    (found,) = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert (found["runtime"], found["batch"], found["skipped"]) == ("pytorch amp", 2, None)


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, [])
    assert (
        done.exit_code == 1
        and done.output == "Error: PyTorch finds no GPU; pass --device cpu to try the script\n"
    )


def test_speedup_is_of_images_and_by_round():
    ours, theirs = cell("a", "x", 2, 1.0, 1.0, 1.0), cell("b", "x", 1, 1.0, 2.0, 9.0)
    assert gpu.speedup(ours, theirs) == 4.0  # medians of 2, 4 and 18
    assert gpu.speedup(ours, None) is None


def test_targets_met_missed_and_not_measured():
    cells = [
        cell("sit_s", "tensorrt fp16", 1, 1.0),
        cell("sit_s", "pytorch compiled", 1, 1.6),
        cell("sit_s", "tensorrt fp16", 128, 1.0),
        cell("sit_s", "pytorch compiled", 128, 1.1),
        cell("sit_xs", "tensorrt fp16", 1, 1.0),
        cell("lvvit_s", "tensorrt fp16", 1, 3.0),
        cell("sit_xs", "tensorrt fp16", 128, 1.0),
        cell("lvvit_s", "tensorrt fp16", 128, 3.6),
    ]
    found = gpu.targets(cells, peak=1e15)
    assert [row["met"] for row in found] == [True, False, None, True]
    assert found[3]["measured"] == pytest.approx(3.6)
    large = cell("sit_l", "tensorrt fp16", 256, 2 * gpu.macs("sit_l") * 256 / 0.5e15)
    assert gpu.targets([large], peak=1e15)[2]["measured"] == pytest.approx(0.5)


def test_running_out_of_memory_is_a_result():
    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError

    cells = [Cell("a", "x", 1), Cell("a", "y", 1)]
    good = Candidate(lambda images: images + 1, lambda images: images + 1)
    time_turn_about(cells, [Candidate(never, never), good], torch.device("cpu"), (8, 8), 0.01)
    assert cells[0].skipped == "out of memory" and cells[0].to_dict()["skipped"] == "out of memory"
    assert cells[1].skipped is None and cells[1].images_per_second() > 0


def test_the_paper_s_protocol_halves_until_it_fits(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def full(cells: list[Cell], *_: Any) -> None:
        asked.append(cells[0].batch)
        if cells[0].batch > 64:
            cells[0].skipped = "out of memory"

    monkeypatch.setattr(gpu, "time_turn_about", full)
    assert gpu.time_levit("sit_nano", torch.device("cpu"), 256, 0.1).batch == 64
    assert asked == [256, 128, 64]


def test_no_time_left_is_said(tmp_path: Path):
    found = gpu.time_model(
        "sit_nano", gpu.Plan(CPU, (1, 2), 0.01, ("nothing",), tmp_path, False), deadline=0.0
    )
    assert {c.skipped for c in found if c.runtime == "nothing fp16"} == {"out of time"}
    assert [c.skipped for c in found if c.runtime == "pytorch eager"][1] == "out of time"


def test_a_runtime_that_fails_is_a_result(tmp_path: Path):
    found = gpu.time_model("sit_nano", gpu.Plan(CPU, (1,), 0.01, ("no-such",), tmp_path, False), float("inf"))
    (failed,) = [c for c in found if c.runtime == "no-such fp16"]
    assert "unknown engine 'no-such'" in failed.skipped
