"""What check.py wrote, taken into a report: what is believed of it, and what it does to the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.check_record import find_elsewhere, read_check
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import Outcome, Topic, Weight, judge
from tests.helpers import checked
from tests.sit_deploy.report.conftest import Page, page_of

MINE, OTHER = "a" * 64, "b" * 64
BUNDLE = (MINE, "sit-int8", "bundles/sit-int8")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return find_elsewhere([path], [BUNDLE])[MINE]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = checked.write(
        tmp_path / "check.json",
        checked.bundle("sit-fp16", OTHER, "fp16", (3.0, 3.0, 3.3)),
        checked.bundle("sit-int8", MINE, "int8", (2.0, 2.0, 2.0)),
        checked.bundle("gone", "c" * 64, refused="no GPU", golden=None, layers=None, latencies=[]),
    )
    assert len(read_check(path)["bundles"]) == 3
    (row,) = rows_of(path)
    assert row["bundle"]["name"] == "sit-int8" and row["gpu"] == checked.GPU
    (over,) = row["over"]
    assert (over["name"], over["batch_size"]) == ("sit-fp16", 1)
    assert over["speedup"]["median"] == pytest.approx(1.5) and over["speedup"]["doubt"] is None


def test_what_was_written_before_paces_were_taken(tmp_path: Path) -> None:
    old = checked.bundle("sit-int8", MINE)
    for latency in old["latencies"]:
        del latency["pace"], latency["in_flight"]
    assert read_check(checked.write(tmp_path / "check.json", old))["bundles"]


@pytest.mark.parametrize(
    ("told", "notes"),
    [({"untimed": []}, []), ({"untimed": [8]}, ["not all was timed"]), ({}, ["not all was timed"])],
)
def test_why_times_are_missing_is_said_where_they_are(
    told: dict[str, Any], notes: list[str], tmp_path: Path
) -> None:
    """Of a file that does not tell which are missing, of all."""
    timing = {**checked.fields()["timing"], "note": "not all was timed"}
    path = checked.write(tmp_path / "check.json", checked.bundle("sit-int8", MINE, **told), timing=timing)
    assert rows_of(path)[0]["bundle"]["notes"] == notes


def test_a_check_that_was_held_up(tmp_path: Path) -> None:
    """By the loop of fixed work beside it alone: the reader judges it anew."""
    slow = checked.bundle("sit-fp16", OTHER, "fp16", (3.0, 3.0, 3.3))
    slow["latencies"][0]["pace"] = [0.2, 0.3, 0.2]
    path = checked.write(tmp_path / "check.json", slow, checked.bundle("sit-int8", MINE))
    (over,) = rows_of(path)[0]["over"]
    assert over["speedup"]["median"] is None
    assert "a loop of fixed work in the same slices ran at 20% of its usual rate" in over["speedup"]["doubt"]


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ({"precision": "fp32"}, ["other"]),
        ({"precision": "int8"}, []),
        ({"precision": "fp16", "model": "sit_s"}, []),
        ({"precision": "fp16", "macs": 1}, []),
        ({"precision": "fp16", "latencies": [checked.latency((3.0, 3.0, 3.0), 8)]}, []),
    ],
)
def test_only_like_is_compared(others: dict[str, Any], found: list[str], tmp_path: Path) -> None:
    precision = others.pop("precision")
    rows = [checked.bundle("other", OTHER, precision, **others), checked.bundle("sit-int8", MINE)]
    (row,) = rows_of(checked.write(tmp_path / "check.json", *rows))
    assert [over["name"] for over in row["over"]] == found


def _golden(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda b: b["golden"].update(fields)


def _latency(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda b: b["latencies"][0].update(fields)


def _stats(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda b: b["latencies"][0]["stats"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_golden(passed=False), "golden.passed does not fit its error and tolerance"),
        (_golden(error=None), "golden.passed does not fit"),
        (_golden(tolerance=99.0), "golden was held to 99.0, and int8 to 1.0"),
        (_stats(p50_ms=1.0), "p50_ms"),
        (_stats(images_per_second=9e9), "images_per_second"),
        (_stats(p50_ms=0), "expected float > 0"),
        (_stats(mean_ms="fast"), "expected float, got str"),
        (_latency(round_medians_ms=[2.0]), "was not timed in 3 rounds"),
        (_latency(round_medians_ms=[]), "is not the median of its rounds"),
        (_latency(batch_size=0), "expected int >= 1"),
        (lambda row: row.update(untimed=[1]), "batch size 1 is in latencies and in untimed"),
        (_latency(gpu=None), "it has rounds of a GPU, and no gpu"),
        (_latency(histogram={"edges_ms": [1.0, 2.0], "counts": [1]}), "does not have as many calls as stats"),
        (_latency(others=[2.0]), "expected float <= 1"),
        (_latency(others=[0.0] * 4), "was not timed in 3 rounds"),
        (_latency(pace=[0.9] * 2), "was not timed in 3 rounds"),
        (_latency(gpu_round_medians_ms=[1.8]), "was not timed in 3 rounds"),
        (_stats(mean_ms=0.5), "mean_ms is below min_ms"),
        (lambda b: b.update(refused="no GPU"), "it must have golden, or refused"),
        (lambda b: b.update(golden=None), "it must have golden, or refused"),
        (lambda b: b.update(refused="no GPU", golden=None), "it did not run, and has figures"),
        (lambda b: b.update(extra=1), "unknown field"),
        (lambda b: b.update(precision="fp4"), "invalid enum value 'fp4'"),
        (lambda b: b.update(digest="short"), "digest"),
        (lambda b: b.update(latencies=2 * b["latencies"]), "a batch size twice"),
        (lambda b: b["engine"].update(kind="torch"), "invalid enum value 'torch'"),
    ],
)
def test_a_field_that_cannot_be_right(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    bundle = json.loads(json.dumps(checked.bundle("sit-int8", MINE)))
    change(bundle)
    with pytest.raises(InputError, match=r"check.json: .*; run check.py again") as raised:
        read_check(checked.write(tmp_path / "check.json", bundle))
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "date", ["2026-02-31T10:00:00+00:00", "2026-11-20T99:00:00+00:00", "2026-13-01T10:00:00+00:00"]
)
def test_a_date_that_is_none(date: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"check.json: .*; run check.py again"):
        read_check(checked.write(tmp_path / "check.json", checked.bundle("sit-int8", MINE), date=date))


def test_the_same_file_twice_is_measured_once(tmp_path: Path) -> None:
    path = checked.write(tmp_path / "check.json", checked.bundle("sit-int8", MINE))
    copy = tmp_path / "copy.json"
    copy.write_text(path.read_text())
    other = checked.write(
        tmp_path / "o.json", checked.bundle("sit-int8", MINE), date="2026-11-21T00:00:00+00:00"
    )
    assert len(find_elsewhere([path, path, copy, other], [BUNDLE])[MINE]) == 2


def test_a_gpu_engine_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sit-int8 ran on a GPU, and gpu is null"):
        read_check(checked.write(tmp_path / "check.json", checked.bundle("sit-int8", MINE), gpu=None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "is no result of check.py; pass what check.py of a folder"),
        ('{"kind": "sit-deploy check", "schema": 2}', "is of schema 2, and 1 is known here"),
        ('{"kind": "sit-deploy check", "schema": true}', "is of schema True"),
        ('{"kind": "sit-deploy check", "schema": 1}', "was changed since check.py wrote it"),
        ('{"bundles": [], "bundles": []}', "is there twice in one object"),
    ],
)
def test_what_is_no_result(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "check.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_check(tmp_path / "check.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_check(tmp_path / "gone.json")


def test_an_edit_is_noticed(tmp_path: Path) -> None:
    path = checked.write(tmp_path / "check.json", checked.bundle("sit-int8", MINE))
    path.write_text(path.read_text().replace("NVIDIA L4", "NVIDIA H100", 1))
    with pytest.raises(
        InputError, match=r"was changed since check.py wrote it: it does not match its digest"
    ):
        read_check(path)


def test_another_bundle(tmp_path: Path) -> None:
    path = checked.write(tmp_path / "check.json", checked.bundle("sit-fp16", OTHER, "fp16"))
    with pytest.raises(
        InputError, match=r"has nothing of these bundles: it measured sit-fp16 \(bbbbbbbbbbbb\)"
    ):
        find_elsewhere([path], [BUNDLE])
    path = checked.write(tmp_path / "check.json", checked.bundle("sit-int8", OTHER))
    with pytest.raises(
        InputError,
        match="measured another bundle called sit-int8, of hash bbbbbbbbbbbb, and bundles/sit-int8 has aaaa",
    ):
        find_elsewhere([path], [BUNDLE])


@pytest.fixture
def gpu_evidence(evidence: dict[str, Any]) -> dict[str, Any]:
    """Evidence of an int8 bundle of TensorRT-RTX as a machine without a GPU measures it."""
    evidence = {**evidence, "golden": None, "speedups": {}}
    evidence["build"]["engine"]["kind"] = "tensorrt-rtx"
    evidence["build"]["quantization"]["speed"] = None
    return evidence


def _judged(evidence: dict[str, Any], rows: list[dict[str, Any]]) -> dict[Weight, list[str]]:
    verdict = judge(Evidence.from_dict({**evidence, "elsewhere": rows}))
    topics = (Topic.GOLDEN, Topic.EIGHT_BITS)
    return {w: [r.text for r in verdict.of_weight(w) if r.topic in topics] for w in Weight}


def test_what_it_does_to_the_verdict(gpu_evidence: dict[str, Any], tmp_path: Path) -> None:
    assert _judged(gpu_evidence, [])[Weight.MISSING] == [
        "The tensorrt-rtx engine did not run on this machine, which has no GPU for it."
    ]
    half = checked.bundle("sit-fp16", OTHER, "fp16", (3.0, 3.0, 3.0))
    both = rows_of(checked.write(tmp_path / "both.json", half, checked.bundle("sit-int8", MINE)))
    found = _judged(gpu_evidence, both)
    assert found[Weight.MISSING] == [] and found[Weight.AGAINST] == []
    assert found[Weight.FAVOUR][0] == (
        "The engine gives the reference's golden outputs within 5.0e-01 of their spread (allowed 1), on NVIDIA L4 (sm89, driver "
        "580.65) by check.py (2026-11-20; tensorrt-rtx 1.7.1.116)."
    )
    assert found[Weight.FAVOUR][1].startswith(
        "On NVIDIA L4 (sm89, driver 580.65): int8 is 1.50× as fast as fp16 at batch 1"
    )
    alone = rows_of(checked.write(tmp_path / "alone.json", checked.bundle("sit-int8", MINE)))
    assert _judged(gpu_evidence, alone)[Weight.MISSING][0].startswith(
        "What int8 gains was not measured where it ran"
    )
    slower = rows_of(
        checked.write(tmp_path / "slow.json", half, checked.bundle("sit-int8", MINE, ms=(4.0, 4.0, 4.0)))
    )
    assert "int8 is not faster than fp16" in _judged(gpu_evidence, slower)[Weight.AGAINST][0]
    wrong = checked.bundle("sit-int8", MINE)
    wrong["golden"].update(passed=False, error=3.0)
    bad = rows_of(checked.write(tmp_path / "bad.json", wrong))
    assert (
        "does not give the reference's golden outputs on NVIDIA L4"
        in _judged(gpu_evidence, bad)[Weight.AGAINST][0]
    )
    assert judge(Evidence.from_dict({**gpu_evidence, "elsewhere": bad})).outcome is Outcome.DO_NOT_SHIP


def test_an_engine_that_was_built_there_is_not_the_bundle_s(
    gpu_evidence: dict[str, Any], tmp_path: Path
) -> None:
    bundle = checked.bundle("sit-int8", MINE)
    bundle["engine"].update(kind="tensorrt", version="10.16.1", built_here=True)
    found = _judged(gpu_evidence, rows_of(checked.write(tmp_path / "check.json", bundle)))
    assert any("did not run on this machine" in text for text in found[Weight.MISSING])
    assert "tensorrt 10.16.1, built there from its graph" in found[Weight.FAVOUR][0]


def test_the_page_names_where(gpu_evidence: dict[str, Any], tmp_path: Path) -> None:
    rows = [checked.bundle("<b>fp16", OTHER, "fp16", (3.0, 3.0, 3.0)), checked.bundle("sit-int8", MINE)]
    refused = checked.bundle("sit-int8", MINE, refused="no <GPU>", golden=None, layers=None, latencies=[])
    paths = [
        checked.write(tmp_path / "one.json", *rows),
        checked.write(tmp_path / "two.json", refused, date="2026-11-21T00:00:00+00:00"),
    ]
    evidence = {**gpu_evidence, "elsewhere": find_elsewhere(paths, [BUNDLE])[MINE]}
    text = Page(page_of(evidence)).text
    assert "Measured on NVIDIA L4 (sm89, driver 580.65), 2026-11-20" in text
    assert "SM clock 2040 to 2040 MHz" in text and "Sit-int8 at batch 1 is 1.50× as fast as <b>fp16" in text
    assert (
        "2 low-precision products run in the types of the graph, 0 do not; of 1 the engine does not tell."
        in text
    )
    assert "It did not run: no <GPU>" in text
    page = page_of(evidence, form="md")
    assert page.count("## Measured on") == page.count("## Did not run on NVIDIA L4") == 1
    again = json.loads(page_of(evidence, form="json"))["bundles"][0]
    assert again["elsewhere"] == evidence["elsewhere"]
    assert "elsewhere" not in json.loads(page_of(gpu_evidence, form="json"))["bundles"][0]
