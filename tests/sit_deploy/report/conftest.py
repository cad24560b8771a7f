"""Evidence of a bundle, measured once, and a parser for pages."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from typing import Any

import pytest
from filelock import FileLock

from sit_deploy.bundle import load_bundle
from sit_deploy.labelled import open_labelled
from sit_deploy.report.evidence import gather
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


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Evidence of the digits in INT8, half of the images in the folder of another class, so that not all is right.

    Measured once for all processes of a run, really timed.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "evidence.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            bundle = load_bundle(request.getfixturevalue("nano_int8"))
            images = request.getfixturevalue("digits").images
            samples = open_labelled(images, bundle.manifest["classes"], 10)
            moved = [(image, (label + i % 2) % 10) for i, (image, label) in enumerate(samples)]
            found = gather(bundle, moved, "digits/val", rounds=1, seconds=0.02, threads=1)
            path.write_text(json.dumps(found))
    return json.loads(path.read_text())


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
