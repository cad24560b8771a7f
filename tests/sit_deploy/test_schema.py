from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from sit_deploy import schema
from sit_deploy.errors import InputError


class Inner(Struct):
    count: Annotated[int, Meta(ge=1, le=9)]
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.share > self.count:
            raise ValueError("share is more than count")


class Outer(Struct):
    inner: Inner
    rows: list[Inner] = []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], r"expected object, got list"),
        ({}, r"it lacks inner"),
        ({"inner": {}}, r"field inner lacks count"),
        ({"inner": {"count": "3"}}, r"field inner\.count: expected int, got str"),
        ({"inner": {"count": True}}, r"field inner\.count: expected int, got bool"),
        ({"inner": {"count": 2.5}}, r"field inner\.count: expected int, got float"),
        ({"inner": {"count": 10**40}}, r"field inner\.count: expected int <= 9"),
        ({"inner": {"count": 1, "share": 2}}, r"field inner: share is more than count"),
        (
            {"inner": {"count": 1}, "rows": [{"count": 1}, None]},
            r"field rows\[1\]: expected object, got null",
        ),
    ],
)
def test_the_first_wrong_field_is_named(value: Any, told: str) -> None:
    with pytest.raises(InputError, match=rf"^here: {told}; do it again$"):
        schema.check(value, Outer, "here", "do it again")


def test_fields_of_a_newer_version_are_let_through(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"inner": {"count": 3, "share": 1, "new": []}, "newer": {}}')
    assert schema.decode(tmp_path / "f.json", Outer, "") == Outer(Inner(3, 1.0))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.json").write_text("{]")
    for name, reason in (
        ("f.json", "Expecting property name"),
        ("none", "No such file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(InputError, match=rf"cannot be read \(.*{reason}.*\); do it again"):
            schema.read_json(tmp_path / name, "do it again")
    monkeypatch.setattr(schema, "JSON_BYTES", 1)
    with pytest.raises(InputError, match="2 bytes are too many"):
        schema.read_json(tmp_path / "f.json", "do it again")
    (tmp_path / "link.json").symlink_to("/dev/zero")  # of no size, and without an end
    with pytest.raises(InputError, match="more than 1 bytes are too many"):
        schema.read_json(tmp_path / "link.json", "do it again")
