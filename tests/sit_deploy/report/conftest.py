"""Evidence of bundles, measured once. Times are made up by a stand-in: they decide nothing, and cost seconds."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.labelled import open_labelled
from sit_deploy.report.evidence import gather
from tests.sit_deploy.conftest import CLASSES, Digits, Trained

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


@pytest.fixture(scope="session")
def measured(nano_int8: Path, digits: Digits) -> dict[str, Any]:
    """Evidence of the digits in INT8, half of the images in the folder of another class, so that not all is right."""
    bundle = load_bundle(nano_int8)
    samples = open_labelled(digits.images, bundle.manifest["classes"], 10)
    moved = [(path, (label + i % 2) % 10) for i, (path, label) in enumerate(samples)]
    return gather(bundle, moved, "digits/val", rounds=1, seconds=0.02, threads=1)


@pytest.fixture
def evidence(measured: dict[str, Any]) -> dict[str, Any]:
    """The same, to be changed."""
    return json.loads(json.dumps(measured))


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


__all__ = ["Page", "Trained", "flipped"]
