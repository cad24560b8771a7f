"""The comparison of ways to run a SiT, tried on nano models: what it makes, what it says of it, and what it refuses."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import (
    documents,
    peer_environments,
    runtime_peers,
    runtime_peers_cells,
    runtime_peers_kept,
    runtime_peers_page,
    runtime_peers_ways,
)
from benchmarks.random_weights import random_model
from benchmarks.runtime_peers_cells import CANDIDATES, Candidate, Cell, Model, Setting, make_model, prepare
from benchmarks.runtime_peers_kept import KeptCells
from engines.errors import EngineError
from engines.latency import LatencyStats
from engines.timing import TimingOptions, WorkerResult, WorkerSpec

# compilations, two environments that would have to be installed, and a build that tunes
SLOW = "compiled,optimum,autocast,half,nncf,nncf-bf16,openvino-int8-auto"


def result_of(*medians_ms: float) -> WorkerResult:
    return WorkerResult(
        LatencyStats.from_seconds([m / 1e3 for m in medians_ms], 1), medians_ms, None, None, True
    )


def one_call_each(workers: Mapping[str, WorkerSpec], timing: TimingOptions) -> dict[str, WorkerResult]:
    """In place of `alternate`: every worker's call is made once, here; its times are its place in the order."""
    for spec in workers.values():
        factory, args = pickle.loads(pickle.dumps((spec.factory, spec.args)))
        logits = factory(*args)()
        assert logits.shape[0] == spec.batch_size
    return {key: result_of(*[float(place)] * timing.rounds) for place, key in enumerate(workers, 1)}


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docs/benchmarks.md alone, where it may be written."""
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(documents.DOCS / "benchmarks.md", folder)
    monkeypatch.setattr(documents, "DOCS", folder)
    return folder


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Model]]:
    """Of four blocks. The teacher is the student under another name, in FP32 alone: nothing here depends on how fast it is."""
    with pytest.MonkeyPatch.context() as patch:
        for number in ("CALIBRATION_IMAGES", "CHECKED_IMAGES"):
            patch.setattr(runtime_peers_cells, number, 4)
        small = functools.partial(random_model, stage_blocks=(1, 1, 1, 1))
        for module in (runtime_peers_cells, runtime_peers_ways):
            patch.setattr(module, "random_model", small)
        student = make_model("sit_nano", threads=1)
        teacher = replace(student, name="lvvit_nano", graphs={"fp32": student.graphs["fp32"]})
        yield {"sit_nano": student, "lvvit_nano": teacher}


@pytest.fixture
def made_once(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_peers, "make_model", lambda name, *_, **__: models[name])


@pytest.mark.slow
@pytest.mark.usefixtures("made_once")
def test_the_whole_comparison_on_a_nano_model(tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime_peers, "alternate", one_call_each)
    path, before = tmp_path / "result.json", (pages / "benchmarks.md").read_text()
    words = (
        f"--models sit_nano --batches 2 --rounds 3 --threads 1 --without {SLOW} --write-docs --output {path}"
    )
    done = CliRunner().invoke(runtime_peers.main, words.split(), catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(path.read_text())

    assert [(c["model"], c["batch"], c["key"]) for c in found["cells"]] == [
        ("sit_nano", 2, candidate.key) for candidate in CANDIDATES
    ]
    timed = [c for c in found["cells"] if not c["skipped"]]
    assert {c["key"] for c in found["cells"] if c["skipped"]} == set(SLOW.split(","))
    for c in timed:
        assert (
            len(c["round_medians_ms"]) == 3 and c["images_per_second"] > 0 and c["over_plain"]["median"] > 0
        )
        assert c["error"] < 1e-4 if c["precision"] == "fp32" else c["sqnr_db"] > 0
    assert found["over_teachers"] == []
    assert set(found["not_run"]) == set(runtime_peers.ON_GPU)
    assert found["versions"]["torch"] and found["machine"]["usable_cpus"] and len(found["load_average"]) == 2
    assert found["command"] == (
        f"python benchmarks/runtime_peers.py --models sit_nano --batches 2 --without {SLOW} --rounds 3 --threads 1"
    )

    page = (pages / "benchmarks.md").read_text()
    assert runtime_peers_page.markdown(found) in page
    assert "| sit_nano | 2 | torch.compile | not run |" in page
    assert "torch.compile: left out by --without" in page
    assert page.split("<!-- pairs -->")[1] == before.split("<!-- pairs -->")[1]
    assert (pages / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("made_once")
def test_pairs_are_timed_in_processes_of_their_own(tmp_path: Path, pages: Path):
    """Each of two models on two engines."""
    path = tmp_path / "pairs.json"
    words = f"--pairs sit_nano/lvvit_nano --rounds 2 --seconds 0.02 --threads 1 --json --write-docs --output {path}"
    done = CliRunner().invoke(runtime_peers.main, words.split(), catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(path.read_text())
    assert found["command"].endswith("--pairs sit_nano/lvvit_nano --rounds 2 --seconds 0.02 --threads 1")
    assert json.loads(done.stdout) == found
    titles = [row["title"] for row in found["pairs"]]
    assert len(titles) == 3 and titles[-1] == "quicker engine of each"
    for row in found["pairs"]:
        assert row["macs_ratio"] == pytest.approx(1.79, abs=0.01) and row["aim"] is None
        assert row["speedup"]["median"] is None and row["speedup"]["doubt"]  # two rounds bear nothing out
    assert "| sit_nano | lvvit_nano | quicker engine of each |" in (pages / "benchmarks.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--models sit_nanoo", "sit_nano"),
        ("--models ,", "--models names nothing"),
        ("--batches 1,0", "--batches takes numbers from 1, got '0'"),
        ("--batches 1,x", "got 'x'"),
        ("--pairs sit_nano", "--pairs takes STUDENT/TEACHER,..., got 'sit_nano'"),
        ("--pairs sit_nano/nothing", "nothing"),
        ("--without compile", "--without has 'compile'; choose from eager, compiled"),
        ("--rounds 0", "--rounds"),
        ("--seconds 0", "--seconds"),
        ("--threads 0", "--threads"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(runtime_peers, "make_model", None)
    done = CliRunner().invoke(runtime_peers.main, [*words.split(), "--output", str(tmp_path / "r.json")])
    assert done.exit_code == 2 and said in done.output and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_made_or_is_wrong_is_a_result(tmp_path: Path, models: dict[str, Model]):
    nano = models["sit_nano"]
    setting = Setting(nano, 3, 1, tmp_path, tmp_path)

    def fails(_: Setting) -> Any:
        raise RuntimeError("no\nsuch thing " + 400 * "x")

    failed = prepare(Candidate("a", "A", "fp32", fails), setting)
    assert failed.worker is None and failed.skipped.startswith("RuntimeError: no such thing x")
    assert failed.skipped.endswith("…") and len(failed.skipped) < 310

    def with_noise(amount: float) -> Candidate:
        noisy = np.random.default_rng(0).normal(0, amount, nano.reference.shape) + nano.reference
        known = dict(zip([image.tobytes() for image in nano.images], noisy, strict=True))
        way = lambda: lambda batch: np.stack([known[image.tobytes()] for image in batch])  # noqa: E731
        return Candidate("a", "A", "fp32", lambda _: (way, ()))

    wrong, right = (prepare(with_noise(amount), setting) for amount in (1e-2, 1e-8))
    assert wrong.worker is None and "of their standard deviation" in wrong.skipped
    assert right.skipped is None and right.error < 1e-5 and right.worker.batch_size == 3


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_group_alone(
    tmp_path: Path, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
):
    def dies(*_: Any) -> Any:
        raise EngineError("worker eager died")

    monkeypatch.setattr(runtime_peers, "alternate", dies)
    without = frozenset(c.key for c in CANDIDATES) - {"onnxruntime-fp32"}
    setting = Setting(models["sit_nano"], 1, 1, tmp_path, tmp_path)
    cells, rows = runtime_peers.measure(setting, without, 1, 0.1)
    assert {row["skipped"] for row in rows} == {
        "left out by --without",
        "the timing failed: worker eager died",
    }
    assert not any(cell.worker for cell in cells)


def test_a_peer_s_environment_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peer_environments.venv, "create", lambda folder, **_: folder.mkdir())
    monkeypatch.setattr(
        peer_environments, "run", lambda _: (_ for _ in ()).throw(RuntimeError("no such package"))
    )
    with pytest.raises(RuntimeError, match="no such package"):
        peer_environments.environment("optimum", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_failed_command_says():
    with pytest.raises(RuntimeError, match=r"^the last line$"):
        peer_environments.run(["sh", "-c", "echo first >&2; echo the last line >&2; exit 3"])


def rows_of(**medians: float) -> list[dict[str, Any]]:
    rows = []
    for key, median in medians.items():
        (candidate,) = (c for c in CANDIDATES if c.key == key.replace("_", "-"))
        row = {"model": "m", "batch": 1, "skipped": None, **runtime_peers.about(candidate)}
        rows.append({**row, "p50_ms": median, "round_medians_ms": [median] * 3})
    return rows


def test_where_we_lose_is_said():
    cells = rows_of(plain=2.0, plain_openvino=2.0, onnxruntime_fp32=1.0, openvino_fp32=4.0)
    text = runtime_peers_page._verdict({"cells": cells})
    assert "| m, batch 1, FP32 | sit-deploy, ONNX Runtime | plain export, ONNX Runtime | 2.00 |" in text
    assert (
        text.count("\n- ") == 1
    )  # on the same runtime; ONNX Runtime's plain export is no match for our engine there
    assert "- m, batch 1, FP32: plain export, OpenVINO is 2.00 times as fast as sit-deploy, OpenVINO" in text

    better = rows_of(eager=0.5, onnxruntime_fp32=1.0, openvino_fp32=4.0)
    assert "PyTorch eager is 2.00 times as fast as sit-deploy, ONNX Runtime" in runtime_peers_page._verdict(
        {"cells": better}
    )
    good = runtime_peers_page._verdict({"cells": rows_of(plain=2.0, onnxruntime_fp32=1.0)})
    assert "Where we lose" not in good and "No other way is quicker" in good


def test_a_side_that_was_held_up_has_no_figure() -> None:
    slow, fast = result_of(*[5244.0] * 3), result_of(*[2.0] * 3)
    row = runtime_peers.compared("sit_xs", "lvvit_s", "X", fast, slow)
    assert (row["speedup"]["median"], row["speedup"]["quartiles"]) == (None, None) and row["speedup"]["doubt"]
    text = runtime_peers_page._pairs({"pairs": [{**row, "aim": 3.5}]})
    assert text.endswith("| not measurable | 3.73 | 3.5 | not measurable |")
    cells = rows_of(plain=2.0, onnxruntime_fp32=1.0)
    text = runtime_peers_page._verdict({"cells": [{**cells[0], "held_up": "others took the CPUs"}, cells[1]]})
    assert "| plain export, ONNX Runtime | not measurable |" in text


def test_aims_met_and_missed():
    row = runtime_peers.compared("sit_xs", "lvvit_s", "X", result_of(*[1.0] * 3), result_of(*[3.6] * 3))
    assert row["macs_ratio"] == pytest.approx(3.72, abs=0.01)
    met, missed = (runtime_peers_page._pairs({"pairs": [{**row, "aim": aim}]}) for aim in (3.5, 3.7))
    assert met.endswith("| 3.5 | yes |") and missed.endswith("| 3.7 | **no** |")


def test_students_are_timed_with_their_teachers_alone(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def fake(workers: Mapping[str, WorkerSpec], *_: Any) -> dict[str, WorkerResult]:
        asked.extend(workers)
        return {key: result_of(*[4.0 if key.startswith("lvvit") else 2.0] * 3) for key in workers}

    monkeypatch.setattr(runtime_peers, "alternate", fake)
    spec = WorkerSpec(print)
    ours = [c for c in CANDIDATES if c.ours]
    cells = {
        name: [Cell(candidate, worker=spec) for candidate in ours]
        for name in ("sit_nano", "lvvit_nano", "sit_m")
    }
    cells["sit_nano"][0] = Cell(ours[0], skipped="broken")
    rows = runtime_peers.over_teachers(cells, 1, 1, 0.1)
    assert not any(key.startswith("sit_m") for key in asked)
    assert [row["title"] for row in rows] == [candidate.title for candidate in ours[1:]]
    assert all(row["speedup"]["median"] == 2.0 for row in rows)
    table = runtime_peers_page._slimming({"over_teachers": rows})
    assert (
        "| sit_nano | lvvit_nano | 1 | INT8 | sit-deploy, OpenVINO | 2.00 | 4.00 | 2.00 (2.00–2.00) | 1.79 |"
        in table
    )


def test_ours_over_the_plain_export_on_the_same_runtime() -> None:
    def cell(title: str, ms: float, ours: bool = False, **more: Any) -> dict[str, Any]:
        base = {
            "model": "sit_s",
            "batch": 1,
            "precision": "fp32",
            "title": title,
            "ours": ours,
            "skipped": None,
        }
        return {**base, "round_medians_ms": [ms] * 3, **more}

    cells = [
        cell("plain export, ONNX Runtime", 3.0),
        cell("plain export, OpenVINO", 2.2),
        cell("**sit-deploy**, ONNX Runtime", 2.0, True),
        cell("**sit-deploy**, OpenVINO", 2.0, True),
        cell("**sit-deploy**, OpenVINO", 1.0, True, precision="int8"),
    ]
    text = runtime_peers_page._same_runtime({"cells": cells})
    assert text.splitlines()[2:] == [
        "| sit_s, batch 1 | ONNX Runtime | 1.50 |",
        "| sit_s, batch 1 | OpenVINO | 1.10 |",
    ]
    cells[0]["skipped"] = cells[1]["skipped"] = "left out"
    assert runtime_peers_page._same_runtime({"cells": cells}) == ""


def test_what_was_made_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidate by candidate, so that a run that is stopped loses one; what the tuning chose is remembered too."""
    first, second = CANDIDATES[:2]
    rest = {candidate.key for candidate in CANDIDATES[2:]}
    setting = SimpleNamespace(told={"nncf": {"versions": {}}}, plans={("m", 1): "default; rest bf16"})
    monkeypatch.setattr(runtime_peers_kept, "prepare", lambda candidate, _: Cell(candidate, error=0.5))
    kept = KeptCells(tmp_path)
    assert kept.lacks(rest) and kept.cell(first) is None
    kept.make(first, setting)
    assert KeptCells(tmp_path).lacks(rest) and not KeptCells(tmp_path).lacks(rest | {second.key})
    again, told, plans = KeptCells(tmp_path), {}, {}
    again.recall(told, plans)
    assert again.cell(first) == Cell(first, error=0.5) and again.cell(second) is None
    assert (told, plans) == (setting.told, setting.plans)


def test_only_making_wants_a_place_for_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(runtime_peers.main, ["--models", "sit_nano", "--only-make"])
    assert done.exit_code == 2 and "--only-make wants --keep FOLDER" in done.output


def test_lower_precisions_over_each_other() -> None:
    def cell(key: str, ms: float) -> dict[str, Any]:
        return {"model": "m", "batch": 1, "key": key, "skipped": None, "round_medians_ms": [ms] * 3}

    times = {"openvino-fp32": 6.0, "openvino-bf16": 3.0, "openvino-int8": 4.0, "openvino-int8-auto": 2.0}
    text = runtime_peers_page._over_ours({"cells": [cell(*item) for item in times.items()]})
    assert text.splitlines()[-1] == "| m | 1 | 2.00 | 2.00 | 1.50 |  |  |"
