"""Reporting from Python; the command line only words it (tests/sit_deploy/cli/test_report.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sit_deploy
from sit_deploy import ReportRequest, write_report
from sit_deploy.report.search_view import found_view
from sit_deploy.report.types import Evidence
from tests.helpers import checked
from tests.helpers.bundles import load_manifest
from tests.helpers.command_line import CommandLine
from tests.helpers.searches import search_fields


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


def test_a_search_is_shown_and_read_back(evidence: dict[str, Any], tmp_path: Path) -> None:
    path, outputs = (
        tmp_path / "found.json",
        tuple(tmp_path / name for name in ("page.html", "page.md", "page.json")),
    )
    path.write_text(json.dumps({"bundles": [{**evidence, "search": search_fields()}]}))
    write_report(ReportRequest((path,), outputs))
    for page in (outputs[0], outputs[1]):
        text = page.read_text()
        assert "How the schedule was chosen" in text and "Asked for 1 ms: at most 1 ms a batch of 1" in text
        assert (
            "--stages 2,3,3 --kept 49,24,12" in text and "which schedule is the best after training" in text
        )
        assert "sit-deploy train --model lvvit" in text
    assert "<ran>" not in outputs[0].read_text() and "closeness over latency" in outputs[0].read_text()
    again = write_report(ReportRequest((outputs[2],), ()))
    assert again.to_dict()["bundles"][0]["search"] == search_fields()
    assert again.bundles[0].evidence.search.chosen.kept == [49, 24, 12]


def test_a_search_in_a_report_is_checked(evidence: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"bundles": [{**evidence, "search": search_fields(limit_ms=-1)}]}))
    with pytest.raises(sit_deploy.InputError, match=r"search\.limit_ms"):
        write_report(ReportRequest((path,), ()))


def test_what_a_report_timed_is_held_against_the_limit(evidence: dict[str, Any]) -> None:
    ms = evidence["ledger"]["entries"][-1]["latency_ms"]
    fields = {k: v for k, v in evidence.items() if k != "verdict"}
    speedups = {name: {**one, "doubt": None} for name, one in fields["speedups"].items() if one["median"]}

    def now(limit: float, **changes: Any) -> list[str]:
        search = search_fields(limit_ms=limit, batch_size=evidence["ledger"]["batch_size"])
        return found_view(Evidence.from_dict({**fields, "speedups": speedups, "search": search, **changes}))[
            "now"
        ]

    assert ", within the limit" in now(1.01 * ms)[0]
    assert ", above the limit" in now(0.99 * ms)[0]
    doubted = {name: {**one, "doubt": "others took the CPUs"} for name, one in fields["speedups"].items()}
    assert now(ms, speedups=doubted) == [
        "Whether it keeps the limit on this machine is not measurable here now."
    ]
    assert found_view(Evidence.from_dict(fields)) is None


def test_without_limits_nothing_is_required(earlier: Path, tmp_path: Path) -> None:
    write_report(ReportRequest((earlier,), (tmp_path / "page.md",))).require()
    with pytest.raises(sit_deploy.GateError):
        write_report(ReportRequest((earlier,), (tmp_path / "two.md",), min_agreement=100)).require()
    pages = ReportRequest(
        (earlier,), (tmp_path / "three.md",), gate=True
    )  # the default limits are held to then
    with pytest.raises(sit_deploy.GateError, match=r"not enough evidence|do not ship"):
        write_report(pages).require()
    assert (tmp_path / "three.md").exists()


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
