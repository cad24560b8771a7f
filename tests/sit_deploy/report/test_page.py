from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.sit_deploy.report.conftest import Page, flipped, page_of
from tests.sit_deploy.report.test_build_page import hostile


def test_one_bundle(evidence: dict[str, Any]) -> None:
    html = page_of(evidence)
    page = Page(html)
    verdict, accuracy = evidence["verdict"], evidence["accuracy"]
    assert page.text.index(verdict["headline"]) < page.text.index("Ledger")  # the verdict comes first
    for sentence in (*verdict["against"], *verdict["missing"], *verdict["favour"]):
        assert sentence in page.text
    for entry in evidence["ledger"]["entries"]:
        assert entry["name"] in page.text and f"{entry['latency_ms']:.2f}" in page.text
    for value in (f"{accuracy['engine_top1']:.2f}", f"{accuracy['agreement']:.2f}", "Where the time goes"):
        assert value in page.text
    assert "Where the error comes in" in page.text and "stage 4, 1 block" in page.text
    assert html.count("<svg") == 3  # latency, error by depth, time by operator


def test_it_is_self_contained(evidence: dict[str, Any]) -> None:
    html = page_of(flipped(evidence))
    page = Page(html)
    assert "http" not in html and "@import" not in html
    assert page.seen.isdisjoint({"script", "link", "iframe", "object"})
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    inner = [value for name, value in page.attributes if name == "xlink:href"]
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert all(value.startswith("#") and value[1:] in identifiers for value in inner)
    assert all(found in identifiers for found in re.findall(r"url\(#([^)]+)\)", html))
    assert len(identifiers) == len(set(identifiers))


def test_every_value_is_escaped(evidence: dict[str, Any]) -> None:
    plain = Page(page_of(flipped(evidence)))
    nasty = hostile(flipped(evidence))
    nasty["name"] = '"><script>alert(1)</script>$x^$'
    nasty["speedups"] = {hostile(name): gain for name, gain in nasty["speedups"].items()}
    nasty["accuracy"]["flips"][0]["picture"] = flipped(evidence)["accuracy"]["flips"][0]["picture"]
    page = Page(page_of(nasty))
    assert page.seen == plain.seen
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    assert page.text.count("<script>") > 10


@pytest.mark.parametrize(("stopped", "more"), [(0, None), (1, "."), (2, " (and 1 more of the kind).")])
def test_it_says_how_many_tails_mean_little(stopped: int, more: str | None, evidence: dict[str, Any]) -> None:
    timing = {name: {**found, "p99_ms": 1.5 * found["p50_ms"]} for name, found in evidence["timing"].items()}
    for name in list(timing)[:stopped]:
        timing[name]["p99_ms"] = 1000 * timing[name]["p50_ms"]
    text = page_of({**evidence, "timing": timing}, form="md")
    said = re.search("Take p99 with care: the slowest calls of .* something stopped them(.*)", text)
    assert (said and said[1]) == more


@pytest.mark.slow
@pytest.mark.parametrize("form", ["html", "md"])
def test_speeds_stand_with_what_is_behind_them_or_not_at_all(
    form: str, evidence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "latency_histogram",
        "drift",
        "operators",
    ):  # the scatter plot alone tells what is not measurable
        monkeypatch.setattr(f"sit_deploy.report.plots.{name}", lambda *_: "<svg></svg>")
    told = {
        "median": 123.46,
        "low": 121.0,
        "high": 125.0,
        "per_round": [123.46],
        "baseline_ms": 27.7,
        "candidate_ms": 8.0,
    }
    evidence["speedups"] = {"student": {**told, "doubt": None}}
    text = page_of(evidence, form=form)
    assert text.count("123.46×") >= 1 and "half of the rounds 121.00 to 125.00; 27.70 over 8.00 ms" in text
    assert "Take the times with care" not in text
    busy = {**told, "doubt": "other programs took 50% of the CPUs while student was timed"}
    evidence["speedups"] = {"student": busy, "deploy form": busy}
    other = {**evidence, "name": "b", "bundle": "b"}
    for text in (page_of(evidence, form=form), page_of(evidence, other, form=form)):
        assert "123.46" not in text and "not measurable here now" in text
        assert "Take the times with care: other programs took 50% of the CPUs" in text


def test_threads_that_are_not_those_of_the_build_are_said(evidence: dict[str, Any]) -> None:
    note = "run on 64 threads, and built for 1 (build --threads)"
    shown = Page(page_of({**evidence, "threads": 64, "threads_note": note})).text
    assert f"64 threads ({note}), not pinned" in " ".join(shown.split())
    assert note not in Page(page_of(evidence)).text


def test_several_bundles_side_by_side(evidence: dict[str, Any]) -> None:
    other = json.loads(json.dumps(evidence))
    other.update(name="a$b$_{c}", bundle="elsewhere")
    html = page_of(evidence, other)
    page = Page(html)
    assert "2 bundles" in page.text and "Side by side" in page.text
    assert page.text.count(evidence["verdict"]["headline"]) == 2
    assert html.count("<svg") == 1 + 2 * 3 and "a$b$_{c}" in page.text
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_without_what_was_not_measured(evidence: dict[str, Any]) -> None:
    for entry in evidence["ledger"]["entries"]:
        entry.update(latency_ms=None, top1=None)
    evidence.update(accuracy=None, timing={}, speedups={}, layers=[], golden=None)
    evidence["drift"] = {"note": "comparing layers needs Polygraphy", "tensors": []}
    text = Page(page_of(evidence)).text
    assert "Not measured: no labelled images were given (--data)." in text
    assert "comparing layers needs Polygraphy" in text
    assert "Latency" not in text and "Where the time goes" not in text and "top-1 %" not in text
    Page(page_of(evidence, {**evidence, "name": "other"}))


def test_the_same_evidence_gives_the_same_page(evidence: dict[str, Any]) -> None:
    assert page_of(evidence) == page_of(json.loads(json.dumps(evidence)))


def test_markdown(evidence: dict[str, Any]) -> None:
    text = page_of(flipped(evidence), form="md")
    assert text.startswith(f"# {evidence['name']}\n\n")
    assert f"**{evidence['verdict']['headline']}**" in text
    lines = text.splitlines()
    for start in (i for i, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)):
        columns = lines[start].count("|")
        rows = iter(lines[start - 1 :])
        for row in rows:
            if not row:
                break
            assert len(re.findall(r"(?<!\\)\|", row)) == columns
    assert "<script>" not in text.replace("\\<script\\>", "")
    both = page_of(evidence, {**evidence, "name": "other"}, form="md")
    assert both.startswith("# 2 bundles") and both.count("## Ledger") == 2
