"""--quantize auto in a build: what is decided of made-up times, what is told of it, and one build that measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import engines
from calibration.cache import Calibration
from calibration.plan import Reason
from engines.errors import EngineError
from sit_deploy.errors import InputError
from sit_deploy.pipeline import tuning
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.calibration import Quantization, make_quantization
from sit_deploy.pipeline.command import rebuild_command
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.request import AUTO
from sit_deploy.pipeline.timings import open_timings
from sit_deploy.pipeline.work import Work
from sit_deploy.report.build_types import BuildReport
from sit_deploy.text import is_warning
from sit_deploy.tune.choose import Verdict
from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing
from sit_deploy.tune.search import Meter
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits, half_nano

DEFAULT = frozenset({"qkv", "proj", "fc1", "fc2", "tsm"})
DB = {"stem": 38.0, "attention": 30.0, "residual": 25.0, "aggregation": 40.0, "head": 45.0}


@dataclass
class Bench:
    """What stands for the engine: the default groups are 1.5 times as fast as fp32, the stem makes it 2.

    Attributes:
        noise: of every timing.
        drops: points lost, by the number of groups in 8 bits.
    """

    stem: float = 0.17
    bf16: float = 0.0
    noise: str | None = None
    drops: dict[int, float] = field(default_factory=dict)
    fp32: float = 1.0
    scale: float = 1.0
    asked: list[Candidate] = field(default_factory=list)
    flipped_db: float | None = None  # of what is corrected otherwise than was measured
    flipped: bool = False
    refused: dict[Candidate, str] = field(default_factory=dict)

    def correct(self, corrected: bool) -> None:
        self.flipped = True

    def __call__(self, *_: Any) -> Bench:
        return self

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def time(self, candidate: Candidate) -> Timing | None:
        self.asked.append(candidate)
        if candidate in self.refused:
            return None
        cost = self.fp32 if candidate.is_float else 1 - 0.0667 * len(candidate.groups & DEFAULT)
        cost += -self.stem if "stem" in candidate.groups else 0.0
        cost += 0.05 * len(candidate.groups - DEFAULT - {"stem"}) + 0.04 * len(candidate.high)
        cost *= 1 if candidate == Candidate() else self.scale
        return Timing(1 / cost, 0.99 / cost, 1.01 / cost, 5 * cost, self.noise)

    def error(self, candidate: Candidate) -> LogitsError:
        if self.flipped and self.flipped_db is not None:
            return LogitsError(10 ** (-self.flipped_db / 10))
        power = 1e-5 * len(candidate.groups & DEFAULT) / max(1, len(candidate.high))
        return LogitsError(power + sum(10 ** (-DB[group] / 10) for group in candidate.groups - DEFAULT))

    def drop(self, candidate: Candidate, _: Any) -> float:
        return 0.0 if candidate.high else self.drops.get(len(candidate.groups), 0.0)


@pytest.fixture(scope="module")
def made(digits: Digits) -> Quantization:
    """What quantizes every group of `digits`, calibrated on four images."""
    with half_nano():
        return make_quantization(work_for(digits), digits.float_graph)


def work_for(digits: Digits, **fields: Any) -> Work:
    request = digits.request(Path("never"), **({"quantize": AUTO} | fields))
    return Work(request, lambda *_: None, engine=engines.get("onnxruntime"))


@pytest.fixture
def tuned(
    digits: Digits, made: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Work, Any, Any]]]:
    """A function that tunes on a bench; it returns the work, the quantization and the tuning."""

    def run(bench: Bench, **fields: Any) -> tuple[Work, Any, Any]:
        work = work_for(digits, **fields)
        monkeypatch.setattr(tuning, "CandidateBench", bench)
        return work, *tuning.tune(work, digits.float_graph, made, tmp_path)

    yield run


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


def test_timings_beside_the_calibration_cache(tuned: Callable[..., Any], tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    first, again = Bench(), Bench()
    tuned(first, calib_cache=cache, min_sqnr=35.0)
    assert (tmp_path / "c.timings.json").is_file()
    _, _, found = tuned(again, calib_cache=cache, min_sqnr=35.0)
    # the float32 engine, which all are timed against, the default plan, by which it shows whether the others hold, and what is chosen
    assert again.asked == [Candidate(DEFAULT), Candidate(), Candidate(DEFAULT | {"stem"})]
    assert found.chosen.groups == DEFAULT | {"stem"}
    assert found.timed == 2 and found.to_dict()["timed"] == 2 and len(found.found.measured) > 5
    drifted = Bench(stem=0.0, scale=0.8)
    work, _, found = tuned(drifted, calib_cache=cache, min_sqnr=35.0)
    assert len(drifted.asked) > 5 and "timings kept from before are not used" in work.notes[0]
    tuned(Bench(), calib_cache=cache, min_sqnr=35.0)
    text = (tmp_path / "c.timings.json").read_text()
    other = json.loads(text)
    other["sections"][0]["where"]["cpu"] = "Another CPU"
    (tmp_path / "c.timings.json").write_text(json.dumps(other))
    work, _, _ = tuned(Bench(), calib_cache=cache, min_sqnr=35.0)
    assert work.notes == [
        "timings of another CPU, or of other instructions, are not used (Another CPU): plans are measured here"
    ]
    (tmp_path / "c.timings.json").write_text(text[:99])
    with pytest.raises(InputError, match=r"c\.timings\.json cannot be read .*delete it"):
        tuned(Bench(), calib_cache=cache)


def test_timings_hold_for_one_set_of_instructions_and_one_kind_of_batch(
    tuned: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ONEDNN_MAX_CPU_ISA kernels are others, and so they are where the batch is open: both were reused in silence."""
    cache = tmp_path / "c.json"
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    tuned(Bench(), calib_cache=cache)
    kept, opened, limited = Bench(), Bench(), Bench()
    tuned(kept, calib_cache=cache)
    tuned(opened, calib_cache=cache, batch_size=1, dynamic_batch=(1, 1, 4))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    tuned(limited, calib_cache=cache)
    assert len(kept.asked) == 3 and len(opened.asked) > 5 and len(limited.asked) > 5
    where = [s["where"] for s in json.loads((tmp_path / "c.timings.json").read_text())["sections"]]
    assert [(one["dynamic"], one["limit"]) for one in where] == [
        (None, ""),
        ([1, 1, 4], ""),
        (None, "ONEDNN_MAX_CPU_ISA=AVX512_CORE"),
    ]


def test_what_an_earlier_tuning_chose_from_and_this_one_may_not(
    tuned: Callable[..., Any], tmp_path: Path
) -> None:
    """--rest fp32 was given, and a plan beside bf16 built, for an earlier build had timed one; so it was with groups that are not calibrated."""
    cache = tmp_path / "c.json"
    tuned(Bench(), calib_cache=cache, min_sqnr=35.0)
    kept = json.loads((tmp_path / "c.timings.json").read_text())
    (section,) = kept["sections"]
    fast = {**section["measured"]["fc1,fc2,proj,qkv,tsm|fp32|"], "ratio": 9.0, "low": 8.9, "high": 9.1}
    section["measured"] |= {
        "fc1,fc2,proj,qkv,tsm|bf16|": fast,
        "|bf16|": fast,
        "fc1,unknown|fp32|": fast,
        "fc1|fp32|no/such/layer": fast,
        "fc1|fp32|": fast,  # which it may, and which is as fast by the file alone
    }
    (tmp_path / "c.timings.json").write_text(json.dumps(kept))
    _, _, found = tuned(Bench(), calib_cache=cache, min_sqnr=35.0, rest="fp32")
    assert found.chosen == Candidate(DEFAULT | {"stem"}) and found.best_float == "fp32"
    assert max(one.timing.ratio for one in found.found.measured) < 3


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


def test_timings_that_cannot_be_kept(tuned: Callable[..., Any], tmp_path: Path) -> None:
    work, _, found = tuned(Bench(), calib_cache=tmp_path / "gone" / "c.json", min_sqnr=35.0)
    assert found.chosen == Candidate(DEFAULT | {"stem"})
    (note,) = work.notes
    assert note.startswith("timings are not kept for another build: cannot write") and "gone" in note


def test_errors_are_of_images_as_they_were_prepared(
    digits: Digits, made: Quantization, tmp_path: Path
) -> None:
    """The same pictures prepared otherwise were calibrated anew, and the old errors told of them."""
    work = work_for(digits, calib_cache=tmp_path / "c.json")
    plan = Measured(Candidate(DEFAULT), Timing(2.0, 1.9, 2.1, 5.0), LogitsError(1e-3))
    open_timings(work, made).keep([plan])
    assert open_timings(work, made).known() == [plan]
    made.calibration.save(tmp_path / "c.json")
    loaded = replace(made, calibration=Calibration.load(tmp_path / "c.json"))
    assert open_timings(work, loaded).known() == [plan]
    moved = replace(made.calibration, images=replace(made.calibration.images, description="elsewhere"))
    assert open_timings(work, replace(made, calibration=moved)).known() == [plan]
    other = replace(made.calibration, preprocessing={**made.calibration.preprocessing, "crop_pct": 0.5})
    assert open_timings(work, replace(made, calibration=other)).known() == []


def test_a_stopped_tuning_leaves_its_timings(tuned: Callable[..., Any], tmp_path: Path) -> None:
    class Stopped(Bench):
        def time(self, candidate: Candidate) -> Timing:
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().time(candidate)

    with pytest.raises(KeyboardInterrupt):
        tuned(Stopped(), calib_cache=tmp_path / "c.json")
    again = Bench()
    tuned(again, calib_cache=tmp_path / "c.json")
    # it is chosen, and so timed once more at the end
    assert again.asked.index(Candidate(DEFAULT | {"stem"})) == len(again.asked) - 1
    assert again.asked[0] == Candidate(DEFAULT)


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


def _speed_up(path: Path, key: str, ratio: float) -> None:
    """Write a time that does not hold into a file of timings."""
    kept = json.loads(path.read_text())
    kept["sections"][0]["measured"][key] |= {"ratio": ratio, "low": 0.99 * ratio, "high": 1.01 * ratio}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize("came", ["slower", "unusable", "refused"])
def test_a_kept_time_that_does_not_hold_leaves_the_file(
    tuned: Callable[..., Any], tmp_path: Path, came: str
) -> None:
    """Taking layers back wrote the old time over the new one, so that each build began with the wrong one; what told nothing stayed for ever."""

    class Changed(Bench):
        def time(self, candidate: Candidate) -> Timing | None:
            timing = super().time(candidate)
            noisy = candidate == wrong and came == "unusable"
            return replace(timing, noise="others") if noisy else timing

    wrong, path = Candidate(DEFAULT - {"tsm"}), tmp_path / "c.timings.json"
    lossy = {"calib_cache": tmp_path / "c.json", "max_accuracy_drop": 1.0, "val_data": "x"}
    tuned(Bench(), **lossy)
    _speed_up(path, wrong.key, 1.8)
    # with the stem too much is lost, so that layers of it are taken back after the choice
    bench = Changed(drops={6: 4.0}, refused={wrong: "no kernel"} if came == "refused" else {})
    _, _, found = tuned(bench, **lossy)
    assert [one for one in bench.asked if one.high], "layers were taken back"
    measured = json.loads(path.read_text())["sections"][0]["measured"]
    if came == "slower":
        now = measured[wrong.key]["ratio"]
        assert now == found.found.of(wrong).timing.ratio == Bench().time(wrong).ratio
    else:
        assert wrong.key not in measured and found.chosen != wrong
    known = found.timings.timing(wrong.key)
    assert (known is None) == (came != "slower")  # what a bundle gets too


def test_what_is_told_of_a_tie_is_of_now(tuned: Callable[..., Any], tmp_path: Path) -> None:
    """The figure of the other plan was that of an earlier build."""
    fields = {"calib_cache": tmp_path / "c.json", "min_sqnr": 30.0}
    tuned(Bench(stem=0.015), **fields)
    again = Bench(stem=0.015)
    _, _, found = tuned(again, **fields)
    assert found.choice.tie.candidate == Candidate(DEFAULT | {"stem"})
    assert again.asked == [Candidate(DEFAULT), Candidate(), found.choice.tie.candidate]
    slower = Bench(stem=-0.1)
    work, _, found = tuned(slower, **fields)
    assert found.choice.tie is None and not work.notes


def test_the_seconds_bound_what_is_timed_again(
    tuned: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plan of a file of wrong times that was slower than it was left the choice to the next, and all were timed."""

    class Slow(Bench):
        now = 0.0

        def time(self, candidate: Candidate) -> Timing | None:
            Slow.now += 10.0
            return super().time(candidate)

    monkeypatch.setattr(tuning, "Meter", partial(Meter, clock=lambda: Slow.now))
    fields, path = {"calib_cache": tmp_path / "c.json", "min_sqnr": 10.0}, tmp_path / "c.timings.json"
    tuned(Slow(), **fields, tune_seconds=1000.0)
    keys = [*json.loads(path.read_text())["sections"][0]["measured"]]
    wrong = [key for key in keys if key != Candidate(DEFAULT).key]
    assert len(wrong) > 6
    for index, key in enumerate(wrong):
        _speed_up(path, key, 3.0 + index)
    bench = Slow()
    work, _, found = tuned(bench, **fields, tune_seconds=5.0)
    # the default plan, which all of the seconds went to, and three that would have been built
    assert len(bench.asked) == 4 and bench.asked[0] == Candidate(DEFAULT)
    assert found.chosen in bench.asked and found.choice.plan.timing.ratio < 3
    assert not found.found.finished and "--tune-seconds ended the search early" in work.notes[-1]
    kept = Slow()
    tuned(kept, **fields, tune_seconds=1000.0)  # with seconds enough each is found out
    assert len(kept.asked) > 6
