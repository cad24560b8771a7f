"""--quantize auto with timings of earlier builds: what holds still, what is measured again, and what leaves the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from calibration.cache import Calibration
from sit_deploy.errors import InputError
from sit_deploy.pipeline import tuning
from sit_deploy.pipeline.calibration import Quantization
from sit_deploy.pipeline.timings import open_timings
from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing
from sit_deploy.tune.search import Meter
from tests.helpers.digits import Digits
from tests.helpers.tuning_bench import DEFAULT, Bench, work_for

pytestmark = pytest.mark.slow


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
