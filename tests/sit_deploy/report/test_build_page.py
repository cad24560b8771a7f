from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.report.build_types import BuildReport
from sit_deploy.report.page import render, write_build_report
from sit_deploy.report.view import build_view
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.report.conftest import Page


@pytest.fixture
def report(trained: Trained) -> dict[str, Any]:
    return json.loads((trained.bundle / "report.json").read_text(encoding="utf-8"))


def hostile(value: Any) -> Any:
    """Return the report with every string of it made into HTML that would run."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f'"><script>alert(1)</script>{value}' if isinstance(value, str) else value


def test_the_page_is_well_formed_and_says_what_the_json_says(
    trained: Trained, report: dict[str, Any]
) -> None:
    html = (trained.bundle / "report.html").read_text(encoding="utf-8")
    assert html == render(BuildReport.from_dict(report))
    page = Page(html)
    assert html.startswith("<!doctype html>")
    for hop in report["hops"]:
        assert hop["name"] in page.text
        assert f"{hop['error']:.1e}" in page.text
    for value in (
        *report["notes"], report["command"], report["weights"]["source"], report["compared_on"],
        report["engine"]["why"], f"{report['accuracy']['engine_top1']:.2f}", report["versions"]["onnxruntime"],
        "hops compared, all within tolerance",
    ):  # fmt: skip
        assert value in page.text
    assert "Not run on the machine" not in page.text


def test_the_page_is_self_contained(trained: Trained) -> None:
    """It must show the same on a plane as in the office: nothing is loaded, from anywhere."""
    html = (trained.bundle / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "http" not in html and "//" not in html.replace(str(trained.checkpoint), "")
    assert "@import" not in html and "url(" not in html
    assert page.seen.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "href"})


def test_every_value_is_escaped(report: dict[str, Any]) -> None:
    plain = Page(render(BuildReport.from_dict(report)))
    page = Page(render(BuildReport.from_dict(hostile(report))))
    assert page.seen == plain.seen  # nothing in a value opened a tag
    assert page.text.count("<script>") > 10


def test_an_engine_that_was_not_run(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    changed["hops"][-1].update(
        name="tensorrt-rtx engine", error=None, step_error=None, sqnr_db=None, agreement=None, compared=False,
        note="built; run it where a GPU is",
    )  # fmt: skip
    page = Page(render(BuildReport.from_dict(changed)))
    compared = len(changed["hops"]) - 1
    assert f"{compared} hops compared, all within tolerance." in page.text
    assert (
        "Not run on the machine that built it: tensorrt-rtx engine; validate it where a GPU is." in page.text
    )


@pytest.mark.parametrize("error", [0.5, None])
def test_a_hop_out_of_tolerance_is_not_called_good(error: float | None, report: dict[str, Any]) -> None:
    """None is how an infinite error is written down."""
    changed = copy.deepcopy(report)
    changed["hops"][1].update(error=error, passed=False, note="NaN or infinite logits")
    page = Page(render(BuildReport.from_dict(changed)))
    assert "do not ship this" in page.text
    assert "out of tolerance NaN or infinite logits" in page.text
    assert "all within tolerance" not in page.text


def test_without_accuracy_and_with_nodes_held_back(report: dict[str, Any]) -> None:
    changed = {**report, "accuracy": None}
    changed["plan"] = {
        "held_back": [{"node": "blocks.3/mlp/fc1", "op_type": "MatMul", "reason": "reaches 9e9"}]
    }
    page = Page(render(BuildReport.from_dict(changed)))
    assert "Not measured: no --val-data was given." in page.text
    assert "Kept in fp32" in page.text and "blocks.3/mlp/fc1" in page.text


def test_json_never_holds_nan(tmp_path: Path, report: dict[str, Any]) -> None:
    report["seconds"] = {"Loading": float("nan")}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_build_report(tmp_path, report)


def test_notes_that_warn(report: dict[str, Any]) -> None:
    """By what the report lists, and in one of before that was listed by how they began."""
    report["notes"] = ["do not ship int8: it is slow", "do not worry", "random weights (seed 0)"]
    report["warnings"] = report["notes"][:1]
    listed = BuildReport.from_dict(report)
    assert [listed.warns(note) for note in listed.notes] == [True, False, False]
    del report["warnings"]
    older = BuildReport.from_dict(report)
    assert [older.warns(note) for note in older.notes] == [True, False, True]
    assert '<p class="unsure">random weights (seed 0)</p>' in render(older)


def test_the_hop_of_the_engine_says_what_its_kernels_are(report: dict[str, Any]) -> None:
    census = {
        "kernels": 9,
        "products": {"int8": 3},
        "attention_kernels": 0,
        "attention": 0,
        "attentions": 0,
        "widened": [],
    }
    report["engine"]["details"] = {"kernels": census}
    views = {hop["name"]: hop for hop in build_view(BuildReport.from_dict(report))["hops"]}
    told = "9 kernels by its builder's log; kernels of products: 3 in int8"
    assert views["onnxruntime engine"]["note"] == told and not views["ONNX fp32"]["note"]
