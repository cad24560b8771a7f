"""The comparison with outliers: what of its record stays, and its table. Nothing is trained or lowered here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks import documents, outliers
from benchmarks.outlier_plants import PLANTS


def model_of(*plants: str, name: str = "sit_nano", top1: float = 97.5, count: int = 256) -> dict[str, Any]:
    row = {"by": "sit-deploy", "title": "INT8", "drop": 0.0926, "sqnr_db": 44.2, "not_finite": 0}
    return {
        "model": name, "data": "digits", "date": "2026-11-27", "held_out_images": 1080, "calibration_images": count,
        "plants": [
            {"plant": p, "title": PLANTS[p].title, "top1": top1, "largest": {"fc2 input": 27.4}, "rows": [row]}
            for p in plants
        ],
    }  # fmt: skip


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "outliers.json"
    models = [model_of("none", "all", "far rare"), model_of("none", name="sit_micro")]
    path.write_text(json.dumps({"date": "2026-11-01", "models": models}))
    monkeypatch.setattr(outliers, "RESULTS", path)
    return path


def test_what_was_not_asked_for_stays(record: Path) -> None:
    found = outliers.with_recorded([model_of("keys", "all", top1=50.0)])
    assert [m["model"] for m in found] == ["sit_nano", "sit_micro"]
    plants = [(p["plant"], p["top1"]) for p in found[0]["plants"]]
    assert plants == [("none", 97.5), ("keys", 50.0), ("all", 50.0), ("far rare", 97.5)]
    with pytest.raises(click.ClickException, match="sit_nano was recorded otherwise; leave --plant out"):
        outliers.with_recorded([model_of("keys", count=128)])
    whole = model_of("none", "all", "far rare", count=128)
    assert outliers.with_recorded([whole])[0] == whole
    record.unlink()
    assert outliers.with_recorded([whole]) == [whole]


def test_a_plant_that_there_is_not(tmp_path: Path) -> None:
    ended = CliRunner().invoke(outliers.main, [str(tmp_path / "work"), __file__, "--plant", "weeds"])
    assert ended.exit_code == 2 and "there is no plant 'weeds'; there are none, norms, " in ended.output
    assert not (tmp_path / "work").exists()


def test_plants_without_the_peer() -> None:
    model = model_of("none", "all")
    model["plants"][0]["rows"].append({"title": "theirs", "drop": 90.0, "not_finite": 0, "sqnr_db": -1.0})
    found = outliers.table(model).splitlines()
    assert [line.rpartition(" | ")[2] for line in found[2:]] == [
        "theirs |",
        "|---|---|---|---|---|",
        "90.00 (-1 dB) |",
        "not run |",
    ]


def test_a_plant_whose_float_graph_is_refused() -> None:
    model = model_of("none")
    model["plants"].append({"plant": "far", "title": PLANTS["far"].title, "failed": "it is off", "rows": []})
    found = outliers.table(model).splitlines()
    assert found[-1] == f"| {PLANTS['far'].title} | refused: it is off | | |"
    assert len({line.count("|") for line in found[2:]}) == 1


def test_the_table() -> None:
    model = model_of("none")
    (row,) = model["plants"][0]["rows"]
    model["plants"][0]["rows"] = [
        row,
        {"title": "FP8", "drop": 1.5, "not_finite": 7, "sqnr_db": None},
        {"title": "theirs", "failed": "no"},
    ]
    found = outliers.table(model).splitlines()
    assert found[0].startswith(
        "sit_nano, trained on digits, 256 calibration images, 2026-11-27: FP32 top-1 on 1080 "
    )
    assert found[-1] == "| nothing planted | 27 | 97.50 | 0.09 (44 dB) | 1.50, 7 images NaN | refused |"
    assert len({line.count("|") for line in found[2:]}) == 1


def test_the_tables_of_the_docs_are_those_of_the_record() -> None:
    recorded = json.loads(outliers.RESULTS.read_text(encoding="utf-8"))
    page = (documents.DOCS / "quantization.md").read_text(encoding="utf-8")
    for model in recorded["models"]:
        assert outliers.table(model) in page
