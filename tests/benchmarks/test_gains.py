"""Tables of the scripts where one side was held up."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import cpp_latency, cpu_latency, documents, gains, int8_latency, triton_load, validate_load
from engines.speedup import speedup
from tests.helpers import held_up

RESULTS = documents.DOCS.parent / "benchmarks" / "results"


def test_fields_and_text() -> None:
    good = gains.fields(gains.of_times([4.0, 4.2, 4.0], [2.0, 2.0, 2.0]))
    assert good == {"median": 2.0, "quartiles": [2.0, pytest.approx(2.05)], "doubt": None}
    assert gains.text(good) == "2.00 (2.00–2.05)"
    tie = gains.fields(gains.of_times([0.9, 1.1, 0.95, 1.02], [1.0] * 4))
    assert gains.text(tie).startswith("0.9") and "both sides of 1" in tie["doubt"]
    slow, fast = held_up.timed(held_up.FACTOR * held_up.MS), held_up.timed(held_up.MS)
    bad = gains.fields(speedup(slow, fast, ("a", "b")))
    assert bad["median"] is bad["quartiles"] is None and gains.text(bad) == "not measurable"


def result(name: str) -> dict:
    return copy.deepcopy(json.loads((RESULTS / f"{name}.json").read_text()))


def test_the_tables_of_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """They are written from the results that are there, and from those without a figure."""
    report = result("int8_latency")
    assert gains.NONE not in int8_latency.table(report)
    for found in report["models"][0]["runs"][0]["speedup"].values():
        found.update(median=None, quartiles=None, of_best=None)
    assert int8_latency.table(report).count(gains.NONE) == 3

    report = result("triton_load")
    assert gains.NONE not in triton_load.table(report)
    report["runs"][0]["triton"][0].update(of_bare=None, per_round=[])
    assert triton_load.table(report).count(gains.NONE) == 1

    report = result("cpp_latency")
    assert gains.NONE not in cpp_latency.tables(report)
    report["runs"][0]["cpp_over_python"].update(median=None, per_round=[])
    assert cpp_latency.tables(report).count(gains.NONE) == 1

    report = result("validate_load")
    assert gains.NONE not in validate_load.paragraph(report)
    report["throughput"]["kept_of_both"] = None
    assert validate_load.paragraph(report).count(gains.NONE) == 1

    report = result("cpu_latency_sit_s_b1")
    report["speedup_of_ours"] = {"eager": None, "plain": 1.5}
    cpu_latency.show(report)
    out = capsys.readouterr().out
    assert "not" in out and "1.500×" in out and "None" not in out
