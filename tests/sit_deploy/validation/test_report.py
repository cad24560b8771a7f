"""Reporting from Python; the command line only words it (tests/sit_deploy/cli/test_report.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sit_deploy
from sit_deploy import ReportRequest, write_report


@pytest.fixture
def earlier(evidence: dict[str, Any], tmp_path: Path) -> Path:
    """A report as another machine wrote it."""
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps({"bundles": [evidence]}))
    return path


def test_an_earlier_report_is_judged_anew(earlier: Path, tmp_path: Path) -> None:
    outputs = tuple(tmp_path / name for name in ("page.html", "page.md", "page.json"))
    report = write_report(ReportRequest((earlier,), outputs, max_accuracy_drop=0))
    assert report.files == outputs and all(path.is_file() for path in outputs)
    (judged,) = report.bundles
    assert judged.verdict.headline in outputs[0].read_text()
    again = write_report(ReportRequest((outputs[2],), (tmp_path / "again.json",), max_accuracy_drop=0))
    assert again.to_dict()["bundles"] == report.to_dict()["bundles"]


def test_without_limits_nothing_is_required(earlier: Path, tmp_path: Path) -> None:
    write_report(ReportRequest((earlier,), (tmp_path / "page.md",))).require()
    with pytest.raises(sit_deploy.GateError):
        write_report(ReportRequest((earlier,), (tmp_path / "two.md",), min_agreement=100)).require()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": (Path("page.pdf"),)}, "must end in .html, .md or .json"),
        ({"outputs": (Path("nowhere/page.md"),)}, "does not exist or cannot be written"),
        ({"images": 3}, "--images is for images with labels"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(sit_deploy.InputError, match=message):
        write_report(ReportRequest((earlier,), **{"outputs": (tmp_path / "page.md",), **options}))


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(sit_deploy.InputError, match="has no bundle in it; make one with"):
        write_report(ReportRequest((tmp_path,), (tmp_path / "page.md",)))
