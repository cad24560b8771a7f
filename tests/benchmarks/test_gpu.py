"""The script that will run on a GPU, tried on a CPU through the same code, and what it makes of its figures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, gpu_page, gpu_worker
from benchmarks.gpu_cells import Candidate, Cell, time_turn_about
from benchmarks.gpu_worker import COMPILED, EAGER, Job, watch
from engines import speedup
from engines.gpus import Gpu, GpuStatus
from sit_deploy.models.catalog import get_config

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def cell(model: str, runtime: str, batch: int, *medians: float) -> Cell:
    return Cell(model, runtime, batch, None, [[m] for m in medians], [[m] for m in medians])


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for bound in (
        "WIDEST",
        "APART",
    ):  # a busy machine's rounds have a figure here: what is made of them is looked at
        monkeypatch.setattr(speedup, bound, math.inf)
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
    assert len(timed) == len(result["cells"])
    assert [row["model"] for row in result["over_teachers"]] == ["sit_nano"] * 2
    assert all(row["met"] is None for row in result["targets"])
    assert set(result["runtimes_skipped"]) == {"tensorrt", "tensorrt-rtx", "torch.compile"}
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
        done.exit_code == 2
        and done.output == "Error: PyTorch finds no GPU; pass --device cpu to try the script\n"
    )


def test_speedup_is_of_images_and_by_round():
    ours, theirs = cell("a", "x", 2, 1.0, 1.0, 1.0), cell("b", "x", 1, 1.9, 2.0, 2.3)
    assert gpu_page.speedup(ours, theirs) == 4.0  # medians of 3.8, 4 and 4.6
    shared = cell("b", "x", 1, 1.0, 2.0, 9.0)  # somebody else was on the GPU
    assert gpu_page.speedup(ours, shared) is None
    assert gpu_page.speedup(ours, None) is None


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
    found = gpu_page.targets(cells, peak=1e15)
    assert [row["met"] for row in found] == [True, False, None, True]
    assert found[3]["measured"] == pytest.approx(3.6)
    large = cell("sit_l", "tensorrt fp16", 256, 2 * gpu_page.macs("sit_l") * 256 / 0.5e15)
    assert gpu_page.targets([large], peak=1e15)[2]["measured"] == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------- what goes wrong


def good(images: Any) -> Any:
    return images + 1


def never(*_: Any) -> None:
    raise torch.OutOfMemoryError


def test_whatever_a_candidate_raises_is_a_result():
    def refuses(*_: Any) -> None:
        raise KeyError("a\nthing" + 400 * "x")

    cells = [Cell("a", name, 1) for name in "xyz"]
    time_turn_about(
        cells,
        [
            Candidate(never, never),
            Candidate(refuses, refuses),
            Candidate(good, good, notes=lambda: ["no graph"]),
        ],
        CPU,
        (8, 8),
        0.01,
    )
    assert cells[0].skipped == "out of memory" and cells[0].to_dict()["skipped"] == "out of memory"
    assert (
        cells[1].skipped.startswith("KeyError: ")
        and cells[1].skipped.endswith("x…")
        and "\n" not in cells[1].skipped
    )
    assert cells[2].skipped is None and cells[2].images_per_second() > 0 and cells[2].note == "no graph"


def make_trouble(job: Job, runtime: str) -> Candidate:
    """A runtime of a worker that does what its name says."""

    def run(images: Any) -> Any:
        if runtime == "crashes" and len(images) == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return images + 1

    if runtime == "refuses":
        raise ValueError("cannot take the model")
    if runtime == "dies while it is built":
        os._exit(3)
    if runtime == "makes the next one hurry":
        gpu_worker.BUILD_SECONDS = 1.0
    if runtime == "hangs":
        time.sleep(600)
    if runtime == "is another":
        return Candidate(run, run, runtime="x fp16")
    return Candidate(run, run)


def job_of(folder: Path, batches: dict[str, tuple[int, ...]], left: float = 600.0, **more: Any) -> Job:
    now = time.monotonic()
    return Job("sit_nano", "cpu", batches, 0.01, folder, now + left, now + left, **more)


@pytest.mark.slow
def test_a_crash_costs_its_row_and_a_hang_too(tmp_path: Path):
    names = ["good", "crashes", "refuses", "dies while it is built", "is another"]
    names += ["left", "makes the next one hurry", "hangs"]
    cells: list[Cell] = []
    job = job_of(tmp_path, dict.fromkeys(names, (1, 2)), left_out={"left": "why"})
    died = watch(job, cells.append, time.monotonic() + 600, make=make_trouble)
    found = {(c.asked or c.runtime, c.batch): c for c in cells}
    assert len(found) == len(cells) == 16
    assert [found["good", batch].skipped for batch in (1, 2)] == [None, None]
    assert found["crashes", 1].skipped is None
    assert found["crashes", 2].skipped == "its process died of SIGSEGV"
    assert found["refuses", 1].skipped == found["refuses", 2].skipped == "ValueError: cannot take the model"
    assert found["hangs", 1].skipped == found["hangs", 2].skipped == "no answer for 1 s"
    assert found["dies while it is built", 2].skipped == "its process ended with status 3"
    assert (found["is another", 1].runtime, found["is another", 1].skipped) == ("x fp16", None)
    assert found["left", 2].skipped == "why"
    assert set(died) == {"crashes", "hangs", "dies while it is built"}


@pytest.mark.slow
def test_what_finds_no_time_is_said(tmp_path: Path):
    cells: list[Cell] = []
    watch(
        job_of(tmp_path, {"good": (1, 2), COMPILED: (1,)}, left=-1.0),
        cells.append,
        time.monotonic() + 60,
        make=make_trouble,
    )
    assert [(c.runtime, c.batch, c.skipped) for c in cells] == [
        ("good", 1, "out of time"),
        (COMPILED, 1, "out of time"),
        ("good", 2, "out of time"),
    ]
    late: list[Cell] = []
    watch(job_of(tmp_path, {"hangs": (1,)}), late.append, time.monotonic() + 4, make=make_trouble)
    assert [c.skipped for c in late] == ["out of time"]


def test_rows_are_written_as_they_come_and_the_file_is_whole(tmp_path: Path):
    path = tmp_path / "r.json"
    results = gpu.Results(path, {"device": {"name": "x"}}, 1e12)
    seen = []
    for number in (1, 2):
        results.add(cell("sit_nano", EAGER, number, 1.0))
        seen.append(json.loads(path.read_text()))
    assert [len(found["cells"]) for found in seen] == [1, 2] and not any(found["complete"] for found in seen)
    results.add(Cell("resnet", EAGER, 1, "refused"))
    assert results.write(complete=True) == json.loads(path.read_text())


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_what_was_done(tmp_path: Path):
    path = tmp_path / "r.json"
    words = f"--device cpu --models sit_nano --batches 1,2,4,8 --seconds 0.01 --no-compile --output {path}"
    with subprocess.Popen(
        [sys.executable, "benchmarks/gpu.py", *words.split()], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as run:
        while run.poll() is None and not (path.is_file() and json.loads(path.read_text())["cells"]):
            time.sleep(0.05)
        run.kill()
    found = json.loads(path.read_text())
    assert found["cells"][0]["batch"] == 1 and not found["complete"]
    assert list(tmp_path.glob("*.json")) == [path]


def test_an_engine_that_cannot_serve_the_gpu_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = []

    def ask(function: Any, arguments: tuple, seconds: float) -> tuple[Any, str | None]:
        tried.append(arguments[0])
        return (
            ("RuntimeError: no kernel image", None)
            if arguments[0] == "tensorrt"
            else (None, "its process died of SIGSEGV")
        )

    answer = SimpleNamespace(can_run=True, reason="")
    monkeypatch.setattr("engines.get", lambda kind: SimpleNamespace(probe=lambda: answer))
    monkeypatch.setattr(gpu_worker, "ask", ask)
    kinds, refused = gpu.engines_here("cuda", str(tmp_path))
    assert tried == ["tensorrt", "tensorrt-rtx"] and kinds == ()
    assert refused == {
        "tensorrt": "does not run one product here: RuntimeError: no kernel image",
        "tensorrt-rtx": "does not run one product here: its process died of SIGSEGV",
    }
    assert set(gpu.jobs_of(None, "1", kinds, True)["sit_s"]) == {EAGER, COMPILED}


@pytest.mark.parametrize(("device", "served"), [("cuda", True), ("cuda:1", True), ("cuda:2", False)])
def test_engines_are_left_out_on_another_gpu_than_they_are_built_for(
    device: str, served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They would be built for the first, and the times told as those of the other."""
    gpus = tuple(Gpu(*row) for row in (("L4", "sm89"), ("L4", "sm89"), ("H100", "sm90")))
    monkeypatch.setattr(gpu, "find_gpus", lambda: GpuStatus(gpus, ""))
    answer = SimpleNamespace(can_run=True, reason="")
    monkeypatch.setattr("engines.get", lambda kind: SimpleNamespace(probe=lambda: answer))
    monkeypatch.setattr(gpu_worker, "ask", lambda *_: ("", None))
    kinds, refused = gpu.engines_here(device, str(tmp_path))
    assert kinds == (gpu.KINDS if served else ())
    assert set(refused) == (set() if served else set(gpu.KINDS))
    said = "another model than cuda:2; set CUDA_VISIBLE_DEVICES=2 and pass --device cuda"
    assert all(why.endswith(said) for why in refused.values())


@pytest.mark.parametrize("release", ["tensorrt-10.16.1", "tensorrt-rtx-1.7.1"])
def test_the_trial_on_a_fake_gpu(release: str, fake_gpu: Any, tmp_path: Path):
    fake_gpu(release)
    said: list[str] = []
    gpu_worker.trial(said.append, "tensorrt-rtx" if "rtx" in release else "tensorrt", str(tmp_path))
    gpu_worker.trial(said.append, "no-such", str(tmp_path))
    assert said[0] == "" and "unknown engine 'no-such'" in said[1]


def test_a_build_that_fell_back_is_a_row_of_what_it_is(nano_fp32: Path, tmp_path: Path):
    shutil.copytree(nano_fp32, tmp_path / "sit_nano-int8-onnxruntime")  # as the build left it
    made = gpu_worker.make_candidate(job_of(tmp_path, {"onnxruntime int8": (1,)}), "onnxruntime int8")
    made.close()
    assert made.runtime == "onnxruntime fp32"
    asked, own = cell("sit_s", "tensorrt fp16", 1, 5.0), cell("sit_s", "tensorrt fp16", 1, 1.0)
    asked.asked = "tensorrt int8"
    assert gpu_page.find([asked, own], "sit_s", "tensorrt fp16", 1) is own
    assert gpu_page.find([asked], "sit_s", "tensorrt int8", 1) is None
    assert gpu_page.over_teachers([asked, cell("lvvit_s", "tensorrt fp16", 1, 6.0)]) == []


def test_what_died_with_two_models_is_left_out_of_the_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs: list[Job] = []

    def watched(job: Job, *_: Any, **__: Any) -> dict[str, str]:
        jobs.append(job)
        return {"x fp16": "its process died of SIGSEGV"} if "x fp16" not in job.left_out else {}

    monkeypatch.setattr(gpu_worker, "watch", watched)
    chosen = {name: {EAGER: (1,), "x fp16": (1,)} for name in "abcd"}
    results = gpu.Results(tmp_path / "r.json", {}, 1.0)
    gpu.time_all(chosen, results, job_of(tmp_path, {}), 100.0, False)
    assert [bool(job.left_out) for job in jobs] == [False, False, True, True]
    assert jobs[2].left_out == {"x fp16": "left out: its process died of SIGSEGV with 2 models before"}
    shares = [job.deadline - jobs[0].deadline for job in jobs]
    assert shares == pytest.approx([0, 23, 46, 69], abs=0.5) and len({job.stop for job in jobs}) == 1


# ------------------------------------------------------------------------------------------------- what is timed


@pytest.mark.slow
def test_the_default_selection_fits_its_time():
    (minutes,) = (option.default for option in gpu.main.params if option.name == "minutes")
    chosen = gpu.jobs_of(None, gpu.BATCHES, ("tensorrt",), True)
    assert sum(map(gpu.reckoned, chosen.values())) <= 60 * minutes
    wanted = {
        ("sit_s", "tensorrt fp16", 1),
        ("sit_s", "tensorrt fp16", 128),
        ("sit_s", COMPILED, 1),
        ("sit_s", COMPILED, 128),
        ("sit_l", "tensorrt fp16", 256),
        ("sit_xs", "tensorrt fp16", 128),
        ("lvvit_s", "tensorrt fp16", 128),
        ("vit_base_patch16_224", "tensorrt fp16", 1),
        ("vit_base_patch16_224", "tensorrt fp16", 32),
        ("deit_small_patch16_224", "tensorrt fp16", 32),
        ("deit_base_patch16_224", "tensorrt fp16", 32),
    }
    there = {
        (name, r, b) for name, runtimes in chosen.items() for r, sizes in runtimes.items() for b in sizes
    }
    assert wanted <= there
    for name in chosen:
        assert gpu_page.macs(name) > 0 and get_config(name)


def test_models_that_are_named_get_everything():
    chosen = gpu.jobs_of("sit_nano, deit_tiny_patch16_224", "4,1", ("tensorrt-rtx",), True)
    assert (
        chosen["sit_nano"]
        == chosen["deit_tiny_patch16_224"]
        == {
            EAGER: (4, 1),
            "tensorrt-rtx fp16": (4, 1),
            "tensorrt-rtx int8": (4, 1),
            "tensorrt-rtx fp8": (4, 1),
            COMPILED: (1,),
        }
    )
    assert COMPILED not in gpu.jobs_of("sit_nano", "1", (), False)["sit_nano"]
    assert gpu_page.macs("deit_tiny_patch16_224") is None


def test_what_others_have_published_stands_beside_ours():
    rows = gpu_page.published([cell("vit_base_patch16_224", "tensorrt fp16", 32, 0.009)])
    theirs = {(r["by"], r["precision"], r["batch"]): r for r in rows}
    first = theirs["FasterTransformer", "FP16", 1]
    assert (first["ms"], first["here_ms"]) == (1.53, None)
    assert theirs["FasterTransformer", "FP16", 32]["ms"] == 10.04
    assert theirs["FasterTransformer", "FP16", 32]["here_ms"] == pytest.approx(9)
    assert all(row["address"].startswith("https://github.com/") for row in rows)
    lines = gpu_page._others(rows)
    assert "| 1, 8, 16, 32 | 1.53, 3.03, 5.30, 10.04 | –, –, –, 9.00 |" in lines[3]
    assert lines[4].endswith("| not measured |")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--models sit_nanoo", "sit_nano"),
        ("--models ,", "--models names nothing"),
        ("--batches 1,0", "--batches takes numbers from 1, got '0'"),
        ("--batches 1,x", "got 'x'"),
        ("--seconds nan", "--seconds takes a number above 0, got nan"),
        ("--seconds 0", "--seconds takes a number above 0, got 0.0"),
        ("--minutes inf", "--minutes takes a number above 0, got inf"),
        ("--device gpu", "--device takes cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_bad_options_are_refused_before_any_work(words: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_worker, "ask", None)
    done = CliRunner().invoke(gpu.main, ["--device", "cpu", *words.split()])
    assert done.exit_code == 2 and said in done.output


@pytest.mark.slow
def test_the_paper_s_protocol_halves_until_it_fits(tmp_path: Path):
    cells: list[Cell] = []
    watch(
        job_of(tmp_path, {gpu_worker.AMP: (8,)}),
        cells.append,
        time.monotonic() + 600,
        make=make_small,
        time_it=gpu_worker.time_levit,
    )
    assert [(c.batch, c.skipped) for c in cells] == [(2, None)]


def make_small(*_: Any) -> Candidate:
    def run(images: Any) -> Any:
        return images if len(images) < 4 else never()

    return Candidate(run, run)
