"""Evidence of another machine, every field of it made wrong: told by name, or the page is whole all the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.cli.common import console
from sit_deploy.cli.report import _show
from sit_deploy.errors import InputError
from sit_deploy.report.page import render_evidence
from sit_deploy.report.read import read_evidence, require_comparable
from sit_deploy.report.types import SCHEMA
from sit_deploy.report.verdict import JudgedBundle, judge
from tests.helpers.bundles import seal_again
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.report.conftest import flipped
from tests.sit_deploy.test_manifest import changed, places

WRONG: tuple[Any, ...] = ([], {}, None, -1, 1e308, "[/x]", True, 10**30, [[]], {"x": {}})


def shortened(value: Any) -> Any:
    """Return evidence with one record of each list of them, the first, which is changed; but with all its stages."""
    if isinstance(value, dict) and value.keys() == {"edges_ms", "counts"}:  # a histogram
        return {"edges_ms": [value["edges_ms"][0], value["edges_ms"][-1]], "counts": [sum(value["counts"])]}
    if isinstance(value, dict):
        return {key: member if key == "entries" else shortened(member) for key, member in value.items()}
    return (
        [shortened(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else value
    )


@pytest.mark.slow
def test_every_field_of_evidence_is_checked(
    evidence: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("latency_histogram", "drift", "operators", "scatter"):  # a second each
        monkeypatch.setattr(f"sit_deploy.report.plots.{name}", lambda *_: "<svg></svg>")
    evidence = shortened({**flipped(evidence), "schema": SCHEMA})
    file = tmp_path / "e.json"
    taken = refused = 0
    for number, place in enumerate(places(evidence)):
        for to in (..., *(WRONG[(3 * number + i) % len(WRONG)] for i in range(3))):
            file.write_text(json.dumps({"bundles": [changed(evidence, place, to)]}))
            try:
                rows = read_evidence(file)
            except InputError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            try:
                judged = [JudgedBundle(row, judge(row)) for row in rows]
                require_comparable(rows)
                render_evidence(judged, "md")
                taken += 1
                if taken % 50 == 0:
                    render_evidence(judged)
                    _show(console(), judged[0])
            except Exception as error:
                raise AssertionError(f"{place} = {to!r} was taken: {error!r}") from error
    assert refused > 500 and taken > 200, (refused, taken)


def whole(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "e.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "is not a report of sit-deploy"),
        ("[]", "is not a report of sit-deploy"),
        ('{"bundles": [3]}', "is not a report of sit-deploy"),
        ('{"bundles": []}', "is a report of no bundle"),
        ('{"bundles": [{"schema": 99}]}', "is a report of schema 99, and 2 is known here"),
        ('{"bundles": [{"schema": true}]}', "is a report of schema True"),
        (
            '{"bundles": [{"schema": 2}]}',
            r"is not a whole report of sit-deploy: bundles\[0\]: it lacks bundle",
        ),
        ("[" * 100_000, "nested too deeply"),
        ('{"bundles": NaN}', "NaN is no number"),
        ('{"bundles": 1, "bundles": []}', "there twice"),
        ('["\\udcff"]', "half a character"),
    ],
)
def test_files_that_are_no_report(text: str, told: str, tmp_path: Path, cli: CommandLine) -> None:
    assert re.search(told, cli.refuses("report", whole(tmp_path, text), "-o", "x.html"))


@pytest.mark.parametrize("text", ["garbage", "[]", "{}", "[" * 100_000])
def test_a_bundles_own_report_is_checked_before_anything_is_measured(
    text: str, nano_fp32: Path, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    bundle = copy_of(nano_fp32)
    (bundle / "report.json").write_text(text)
    seal_again(bundle)
    for words in (("inspect", bundle), ("report", bundle, "-o", "x.html")):
        assert "report.json" in cli.refuses(*words)


@pytest.mark.slow
def test_markup_in_evidence_is_shown(evidence: dict[str, Any], tmp_path: Path, cli: CommandLine) -> None:
    evidence["name"] = evidence["ledger"]["entries"][0]["note"] = "[/x] [bold]<script>\x1b[2J"
    census = {
        "kernels": 9,
        "products": {"int8": 3},
        "attention_kernels": 0,
        "attention": 0,
        "attentions": 0,
        "widened": [],
    }
    evidence["build"]["engine"]["details"] = {"kernels": census}
    path = whole(tmp_path, json.dumps({"bundles": [evidence]}))
    out = cli("report", path, "-o", "x.html", "-o", "x.md").out
    kernels = "onnxruntime engine: 9 kernels by its builder's log; kernels of products: 3 in int8"
    assert kernels in out and kernels in Path("x.md").read_text()
    assert r"[/x] [bold]<script>\x1b[2J" in out and "\x1b" not in out
    assert "<script>" not in Path("x.html").read_text() and "<script>" not in Path("x.md").read_text()
