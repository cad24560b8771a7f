from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.read import read_evidence, require_comparable
from sit_deploy.report.types import Evidence
from tests.sit_deploy.report.conftest import page_of
from tests.sit_deploy.report.test_embedding_verdict import UNLABELLED
from tests.sit_deploy.report.test_embedding_verdict import evidence as vectors


def comparable(*rows: dict[str, Any]) -> None:
    require_comparable([Evidence.from_dict(row) for row in rows])


def test_read_again(evidence: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(page_of(evidence, {**evidence, "bundle": "other"}, form="json"))
    rows = json.loads(path.read_text())["bundles"]
    assert rows == [evidence, {**evidence, "bundle": "other"}]
    assert [row.to_dict() for row in read_evidence(path)] == rows
    newer = {**evidence, "of_tomorrow": 3, "machine": {**evidence["machine"], "of_tomorrow": 4}}
    path.write_text(json.dumps({"bundles": [newer]}))
    assert read_evidence(path)[0].to_dict() == newer
    for text in ("{", "[]", '{"bundles": 3}', '{"bundles": [{"schema": 99}]}', '{"a": 1}'):
        path.write_text(text)
        with pytest.raises(
            InputError, match=r"report\.json (cannot be read|is not a report|is a report of schema 99)"
        ):
            read_evidence(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_evidence(tmp_path / "gone.json")


def test_bundles_that_cannot_be_compared(evidence: dict[str, Any]) -> None:
    other = json.loads(json.dumps({**evidence, "bundle": "other"}))
    comparable(evidence, other)
    other["accuracy"].update(images=7, lost=0, gained=0, drop=0.0)
    with pytest.raises(
        InputError,
        match="20 images of digits/val, other on 7 images of digits/val; measure both on the same",
    ):
        comparable(evidence, other)
    other["accuracy"] = None
    comparable(evidence, other)
    other["build"]["classes"] = other["build"]["classes"][::-1]
    with pytest.raises(InputError, match=r"tell other classes apart \(10 and 10\); report them one by one"):
        comparable(evidence, other)
    with pytest.raises(InputError, match="is there twice"):
        comparable(evidence, evidence)


def test_vectors_of_made_up_images_beside_those_of_photographs() -> None:
    photographs, made_up = vectors(), {**vectors(**UNLABELLED, data=None, images=64), "bundle": "other"}
    with pytest.raises(InputError, match="10000 images of flowers, other on 64 synthetic images; measure"):
        comparable(photographs, made_up)
