"""Evidence of a bundle, measured once, and a parser for pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from sit_deploy.report.page import render_evidence
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import JudgedBundle, judge
from tests.sit_deploy.conftest import CLASSES

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed in order; collects text, tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*rows: dict[str, Any], form: str = "html") -> str:
    """Return the page of evidence, as JSON has it, judged anew."""
    found = [Evidence.from_dict(row) for row in rows]
    return render_evidence([JudgedBundle(evidence, judge(evidence)) for evidence in found], form)


def flipped(evidence: dict[str, Any]) -> dict[str, Any]:
    """Return the evidence with an image whose class changed, named as nastily as can be."""
    picture = "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2Q=="
    names = {
        f"{side}_name": name
        for side, name in zip(("label", "reference", "engine"), CLASSES[2:], strict=False)
    }
    flip = {
        "image": 'a/"><script>.png',
        "index": 0,
        "label": 0,
        "reference": 1,
        "engine": 2,
        "picture": picture,
    }
    flip |= {"reference_probability": 0.9, "engine_probability": 0.4, "margin": 0.5, **names}
    return {**evidence, "accuracy": {**evidence["accuracy"], "flips": [flip]}}
