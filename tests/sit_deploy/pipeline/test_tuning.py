"""--quantize auto in a build: what is decided of made-up times, what is told of it, and one build that measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.cache import Calibration
from calibration.plan import Reason
from engines.errors import EngineError
from sit_deploy.pipeline import tuning
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.calibration import Quantization, make_quantization
from sit_deploy.pipeline.command import rebuild_command
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.report.build_types import BuildReport
from sit_deploy.text import is_warning
from sit_deploy.tune.choose import Verdict
from sit_deploy.tune.measured import Candidate
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits
from tests.helpers.tuning_bench import DEFAULT, Bench, work_for

pytestmark = pytest.mark.slow


def test_the_plan_that_is_faster_is_built(tuned: Callable[..., Any]) -> None:
    work, quantization, found = tuned(Bench(), min_sqnr=35.0)
    plan = quantization.quantizer.plan
    assert found.choice.verdict is Verdict.PLAN and found.chosen == Candidate(DEFAULT | {"stem"})
    low = {layer.group for layer in plan.layers if not layer.is_high}
    assert low == DEFAULT | {"stem"}
    reasons = {layer.reason for layer in plan.layers}
    assert reasons == {Reason.TUNED_LOW, Reason.TUNED_HIGH}
    assert (work.request.quantize, work.request.rest) == (("default", "stem"), "fp32")
    command = rebuild_command(work.request, "onnxruntime")
    assert "--quantize default,stem --rest fp32" in command and "--min-sqnr" not in command
    again = rebuild_command(replace(work.request, max_accuracy_drop=1.0), "onnxruntime", tuned=True)
    assert again == command
    assert not work.notes
    record = found.to_dict()
    assert [row["chosen"] for row in record["candidates"]].count(True) == 1
    json.dumps(record, allow_nan=False)


def test_what_a_plan_may_lose_where_nobody_says(
    tuned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """38 dB with the stem are enough; were they not, they would be more than a decibel below the default groups."""
    _, _, found = tuned(Bench())
    assert found.choice.plan.candidate == Candidate(DEFAULT | {"stem"})
    assert found.limit == "SQNR of 30 dB, or at most 1 dB below that of the default groups"
    monkeypatch.setattr(tuning, "ENOUGH_DB", 45.0)
    _, _, found = tuned(Bench())
    assert found.choice.plan.candidate == Candidate(DEFAULT) and not found.tries


def test_layers_go_back_between_a_plan_that_misses_and_one_that_holds(tuned: Callable[..., Any]) -> None:
    """With the stem four points are lost, with one layer less of it none."""
    work, quantization, found = tuned(Bench(drops={6: 4.0}), max_accuracy_drop=1.0, val_data="x")
    assert found.chosen.groups == DEFAULT | {"stem"} and len(found.chosen.high) == 1
    assert quantization.quantizer.plan.kept_for_accuracy == found.chosen.high
    assert work.request.quantize == ("default", "stem", f"-{found.chosen.high[0]}")
    # the fastest first; then the one that keeps it; then half of the stem, and one layer
    assert [drop for _, drop in found.tries] == [4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("db", "taken"), [(40.0, True), (34.0, False)])
def test_what_is_told_of_a_plan_is_of_the_engine_that_is_built(
    tuned: Callable[..., Any], made: Quantization, monkeypatch: pytest.MonkeyPatch, db: float, taken: bool
) -> None:
    """Correcting biases is best for the default plan, or not; another plan may want it otherwise."""
    before = made.quantizer.corrected
    monkeypatch.setattr(
        "sit_deploy.quantize.quantizer.choose_correction", lambda q, _: replace(q, corrected=not before)
    )
    _, quantization, found = tuned(Bench(flipped_db=db), min_sqnr=35.0)
    assert (quantization.quantizer.corrected != before) == taken
    told = found.choice.plan.error.sqnr_db
    assert (told == pytest.approx(db)) == taken and told >= 35.0
    (row,) = [row for row in found.to_dict()["candidates"] if row["chosen"]]
    assert row["sqnr_db"] == told


def test_plans_that_are_compared_on_an_image_or_two(
    digits: Digits, made: Quantization, tuned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_FEW_IMAGES", len(made.stream.sources) + 1)
    work, _, _ = tuned(Bench())
    (note,) = work.notes
    assert f"few calibration images ({len(made.stream.sources)})" in note and is_warning(note)


def test_a_limit_that_nobody_keeps(tuned: Callable[..., Any]) -> None:
    with pytest.raises(
        NoGainError, match=r"no plan in int8 keeps SQNR of at least 90 dB; fp32 was"
    ) as caught:
        tuned(Bench(), min_sqnr=90.0)
    assert (caught.value.reason, caught.value.instead) == (NoGain.ACCURACY, "fp32")


def test_float_that_is_faster(tuned: Callable[..., Any]) -> None:
    """With a limit it is built instead; without one the plan is, and the speed gate has its say."""
    fast = Bench(fp32=0.5, stem=0.0)
    with pytest.raises(NoGainError, match="not faster than fp32 on onnxruntime here") as caught:
        tuned(fast, min_sqnr=30.0)
    assert (caught.value.reason, caught.value.instead) == (NoGain.SPEED, "fp32")
    _, _, found = tuned(fast)
    assert found.choice.verdict is Verdict.FLOAT and found.best_float == "fp32"


def test_a_tie_is_told(tuned: Callable[..., Any]) -> None:
    work, _, found = tuned(Bench(stem=0.015), min_sqnr=30.0)
    assert found.chosen == Candidate(DEFAULT)
    (note,) = work.notes
    assert note.startswith(
        "a tie: default; rest fp32 and default, stem; rest fp32 are as fast"
    ) and not is_warning(note)


def test_a_busy_machine_leaves_the_default_plan(tuned: Callable[..., Any]) -> None:
    work, quantization, found = tuned(Bench(noise="other programs took 40% of the CPUs"), tune_seconds=0.01)
    assert found.choice.verdict is Verdict.NOISE and not found.settled
    assert {layer.group for layer in quantization.quantizer.plan.layers if not layer.is_high} == DEFAULT
    (warning,) = work.notes
    assert (
        is_warning(warning) and "other programs took 40% of the CPUs" in warning and "Close other" in warning
    )
    with pytest.raises(NoGainError, match="keeps SQNR of at least 90 dB"):
        tuned(Bench(noise="others"), tune_seconds=0.01, min_sqnr=90.0)


def test_plans_that_cannot_be_built_are_told(tuned: Callable[..., Any]) -> None:
    """They were left out in silence; without the default one there is nothing to be better than, and why stood nowhere."""
    stem = Candidate(DEFAULT | {"stem"})
    work, _, found = tuned(Bench(refused={stem: "no kernel"}), min_sqnr=35.0)
    assert found.chosen == Candidate(DEFAULT)
    (note,) = work.notes
    assert note == "1 plan was left out, as it could not be built: default, stem; rest fp32: no kernel"
    work, _, _ = tuned(Bench(refused={Candidate(): "no kernel"}), min_sqnr=35.0)
    (note,) = work.notes
    assert note == "1 engine was left out, as it could not be built: fp32: no kernel"
    words = r"cannot be tuned: int8 of the default groups.* cannot be built: the disk is full; mend that, .*--precision fp32"
    with pytest.raises(EngineError, match=words):
        tuned(Bench(refused={Candidate(DEFAULT): "the disk is full"}))


def test_a_calibration_without_ranges_for_all_groups(
    digits: Digits, made: Quantization, tmp_path: Path
) -> None:
    """What `calibrate` makes for the default groups: attention and sums stay high, in one line."""
    observed = made.calibration
    products = [name for name in observed.tensors if "softmax" in name or "/add" in name]
    assert products
    kept = {name: tensor for name, tensor in observed.tensors.items() if name not in products}
    cache = tmp_path / "c.json"
    replace(observed, tensors=kept).save(cache)
    assert Calibration.load(cache).tensors.keys() == kept.keys()
    work = work_for(digits, calib_cache=cache)
    quantization = make_quantization(work, digits.float_graph)
    assert {layer.group for layer in quantization.quantizer.plan.layers if not layer.is_high} >= DEFAULT
    (note,) = [note for note in work.notes if "no ranges" in note]
    assert note.startswith(f"{cache} has no ranges for ") and "calibrate again with --quantize auto" in note


def test_a_build_that_measures(quick_float: Digits, tmp_path: Path, cli: CommandLine) -> None:
    """Whatever the machine tells: the bundle has it, and says so wherever it is looked at."""
    request = quick_float.request(tmp_path / "b", quantize=None, tune_seconds=2.0)
    bundle = build(request)
    report = json.loads((bundle.path / "report.json").read_text())
    record = report["quantization"]["tuning"]
    assert record["candidates"] and record["verdict"] in {verdict.value for verdict in Verdict}
    assert record["candidates"][0]["groups"] == sorted(DEFAULT)
    assert "timings.json" in bundle.manifest.files
    assert not list(bundle.path.glob("tuning*")) and not list(tmp_path.glob(".*partial"))
    assert BuildReport.from_dict(report).to_dict() == report
    page = (bundle.path / "report.html").read_text()
    assert "How the plan was chosen" in page
    text = cli("inspect", bundle.path).out
    assert "Plan: tuned: " in text or "Plan: not tuned, " in text
    assert cli("inspect", bundle.path, "--json").json()["tuning"]


@pytest.mark.slow
def test_a_build_that_gives_8_bits_up_shows_why(
    quick_float: Digits, made: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    """Its page has the front, its timings are kept, and no note speaks of a calibration that it has not."""
    monkeypatch.setattr(tuning, "CandidateBench", Bench())
    made.calibration.save(tmp_path / "c.json")
    fields = {"calib_cache": tmp_path / "c.json", "min_sqnr": 90.0, "quantize": None}
    bundle = build(quick_float.request(tmp_path / "b", **fields))
    report = json.loads((bundle.path / "report.json").read_text())
    assert report["precision"] == "fp32" and report["quantization"] is None
    assert [note for note in report["notes"] if "no plan in int8 keeps SQNR of at least 90 dB" in note]
    assert not [note for note in report["notes"] if "calibrated by" in note]
    record = report["tuning"]
    assert record["instead"] == "fp32" and record["verdict"] == "none"
    assert [(one["groups"], one["rest"]) for one in record["candidates"] if one["chosen"]] == [([], "fp32")]
    assert "timings.json" in bundle.manifest.files and BuildReport.from_dict(report).to_dict() == report
    assert "How the plan was chosen" in (bundle.path / "report.html").read_text()
    words = "8 bits were given up for fp32: no plan keeps SQNR of at least 90 dB"
    assert words in " ".join(cli("inspect", bundle.path).out.split())
