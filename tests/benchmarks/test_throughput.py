"""The script's table is in the docs as its results say, and rows of another run stay only beside their like."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks import documents, gains, throughput
from tests.helpers import held_up


@pytest.fixture
def report() -> dict[str, Any]:
    path = documents.DOCS.parent / "benchmarks" / "results" / "throughput.json"
    return json.loads(path.read_text())


def test_the_table_in_the_docs(report: dict[str, Any]) -> None:
    text = (documents.DOCS / "serving.md").read_text(encoding="utf-8")
    assert f"{throughput.about(report)}\n\n{throughput.table(report)}" in text


def test_a_mode_that_was_held_up() -> None:
    results = {
        "latency": held_up.timed(held_up.FACTOR * held_up.MS),
        "throughput": held_up.timed(held_up.MS, in_flight=2),
    }
    found = throughput.row("openvino", results)
    assert found["gain"]["median"] is None and found["throughput"]["batch_ms"] == 2 * held_up.MS
    table = throughput.table({"runs": [{"model": "sit_s", "batch": 1, **found}]})
    assert table.endswith(f"| {gains.NONE} |") and not any(figure in table for figure in held_up.FIGURES)


def test_rows_of_an_earlier_run(report: dict[str, Any]) -> None:
    again = copy.deepcopy(report)
    again["runs"] = [row for row in again["runs"] if row["model"] == "sit_nano"]
    again["runs"][0]["engine"] = "changed"
    found = throughput.with_others(again, report)
    assert len(found) == len(report["runs"]) and "changed" in {row["engine"] for row in found}
    for change in ({"rounds": 99}, {"date": "2020-01-01"}, {"machine": {"cpu_model": "another"}}):
        assert throughput.with_others({**again, **change}, report) == again["runs"]
    assert throughput.with_others(again, {}) == again["runs"]
