"""Every face that prints how many times as fast something is, where one side was held up: none has a figure then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sit_deploy.portable.table import compared
from sit_deploy.report.build_types import EightBitSpeed
from sit_deploy.report.speedup_text import factor, sentence
from sit_deploy.report.timing_types import SpeedupRecord
from sit_deploy.report.types import Stage
from sit_deploy.schema import check
from sit_deploy.validation.evidence import _speedups
from tests.helpers import held_up


def stages(**macs: int) -> Any:
    """A table of hops, of which the student was held up."""
    names = {"student": Stage.STUDENT.value, "teacher": Stage.TEACHER_ENGINE.value}
    names["engine"] = Stage.of_engine("onnxruntime")
    entries = [SimpleNamespace(name=name, macs=macs.get(key, 10)) for key, name in names.items()]
    timing = {
        name: held_up.timed(held_up.MS * (1 if key == "engine" else 2622)) for key, name in names.items()
    }
    return SimpleNamespace(entries=entries, timing=timing)


def test_a_report() -> None:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(engine=SimpleNamespace(kind="onnxruntime")))
    found = _speedups(bundle, stages())
    assert len(found) == 2
    for fields in found.values():
        assert (fields["median"], fields["low"], fields["per_round"]) == (None, None, [])
        record = check(fields, SpeedupRecord, "x", "")
        text = sentence("the engine", "PyTorch", record)
        assert "is not measurable here now: " in text and factor(record) == "?"
        assert not any(figure in text for figure in held_up.FIGURES)
    # a teacher with a hundred times the work may take a hundred times the time, and more
    assert _speedups(bundle, stages(teacher=1000))[Stage.TEACHER_ENGINE.value]["median"] == held_up.FACTOR


def test_check_py() -> None:
    def row(name: str, precision: str) -> dict[str, Any]:
        known = {"name": name, "precision": precision, "model": "sit_s", "macs": 10}
        return {**known, "engine": {"kind": "openvino"}, "latencies": [{"batch_size": 1}]}

    times = {("a", 1): held_up.timed(2622 * held_up.MS), ("b", 1): held_up.timed(held_up.MS)}
    (text,) = compared([row("a", "fp32"), row("b", "int8")], times)
    assert text.startswith(
        "b over a at batch 1: not measurable here now: a did its work at a 2622th of the rate of b"
    )
    assert not any(figure in text for figure in held_up.FIGURES)


def test_reports_of_before() -> None:
    """They kept the figures beside the doubt; no face shows them."""
    speed = {
        "over": "fp32",
        "batch_size": 1,
        "ratio": 2622.0,
        "low": 2622.0,
        "high": 2622.0,
        "per_round": [2622.0],
    }
    speed |= {"p50_ms": {"fp32": 5244.0, "int8": 2.0}, "doubt": "busy"}
    gain = {"median": 2622.0, "low": 2622.0, "high": 2622.0, "baseline_ms": 5244.0, "candidate_ms": 2.0}
    for told in (
        check(speed, EightBitSpeed, "x", "").speedup(),
        check({**gain, "doubt": "busy"}, SpeedupRecord, "x", ""),
    ):
        text = sentence("int8", "fp32", told)
        assert text.startswith("whether int8 is faster than fp32 is not measurable here now: busy; ")
        assert factor(told) == "?" and not any(figure in text for figure in held_up.FIGURES)
