"""Reporting from Python; the command line only words it (tests/sit_deploy/cli/test_report.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sit_deploy
from sit_deploy import ReportRequest, write_report
from sit_deploy.report.types import Evidence
from tests.helpers import checked
from tests.helpers.bundles import load_manifest
from tests.helpers.command_line import CommandLine


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


def test_what_check_py_measured(
    nano_int8: Path, evidence: dict[str, Any], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Evidence.from_dict({k: v for k, v in evidence.items() if k != "verdict"})
    monkeypatch.setattr("sit_deploy.validation.report.gather", lambda *_, **__: measured)
    mine = checked.bundle("nano-int8", load_manifest(nano_int8)["digest"])
    path = checked.write(cli.folder / "check.json", mine)
    found = cli("report", nano_int8, "--measured", path, "-o", "page.html", "--json").json()["bundles"][0]
    assert found["elsewhere"][0]["bundle"] == mine
    assert any(
        "on NVIDIA L4 (sm89, driver 580.65) by check.py" in text for text in found["verdict"]["favour"]
    )
    assert "Measured on NVIDIA L4" in (cli.folder / "page.html").read_text()
    out = cli("report", nano_int8, "--measured", path, "-o", "two.html").out
    assert "Measured on NVIDIA L4 (sm89, driver 580.65), 2026-11-20" in out
    refused = dict(mine, refused="no driver", golden=None, layers=None, latencies=[])
    path_refused = checked.write(cli.folder / "refused.json", refused)
    out = cli("report", nano_int8, "--measured", path_refused, "-o", "three.html").out
    assert (
        "Did not run on NVIDIA L4" in out and "It did not run: no driver." in out and "Measured on" not in out
    )
    edited = cli.folder / "edited.json"
    edited.write_text(path.read_text().replace("NVIDIA L4", "NVIDIA B200"))
    other = checked.write(cli.folder / "other.json", checked.bundle("nano-int8", "0" * 64))
    refuses = lambda *words: cli.refuses("report", *words, "-o", "no.html")  # noqa: E731
    assert "was changed since check.py wrote it" in refuses(nano_int8, "--measured", edited)
    assert "measured another bundle called nano-int8, of hash 000000000000" in refuses(
        nano_int8, "--measured", other
    )
    assert "cannot be read (No such file" in refuses(nano_int8, "--measured", "gone.json")
    assert f"is what check.py measured: name its bundles, and pass it as --measured {path}" in refuses(path)
    earlier = cli.folder / "earlier.json"
    earlier.write_text(json.dumps({"bundles": [evidence]}))
    assert "--measured adds to bundles that are measured here" in refuses(earlier, "--measured", path)
