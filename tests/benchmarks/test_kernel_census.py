"""The census of kernels: what --only makes anew and what it keeps, and the table. Nothing is exported or built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import documents, kernel_census

CENSUS = {
    "kernels": 171,
    "products": {"int8": 71, "float16": 3},
    "attention_kernels": 16,
    "attention": 16,
    "attentions": 16,
    "widened": ["blocks.0/attn/qkv"],
    "attention_8_bits": 0,
}


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that are counted anew, with 1 kernel each; the record is a copy."""
    seen: list[str] = []

    def count(path: Path, target: str) -> dict[str, Any]:
        seen.append(path.stem.removeprefix("sit_s-"))
        return {**CENSUS, "kernels": 1}

    (tmp_path / "record.json").write_text(kernel_census.RESULTS.read_text(encoding="utf-8"))
    monkeypatch.setattr(kernel_census, "RESULTS", tmp_path / "record.json")
    monkeypatch.setattr(kernel_census, "count", count)
    monkeypatch.setattr(kernel_census, "pictures", lambda *_: (tmp_path, tmp_path))
    for graph, *_ in kernel_census.ROWS:
        (tmp_path / f"sit_s-{graph}.onnx").touch()
    versions = recorded(tmp_path)["versions"]
    monkeypatch.setattr(kernel_census, "version", versions.__getitem__)
    return seen


def recorded(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_only_some_rows(counted: list[str], tmp_path: Path) -> None:
    before = recorded(tmp_path)
    words = [str(tmp_path), "--only", "ours-fp8", "--only", "ours-fp32"]
    ended = CliRunner().invoke(kernel_census.main, words, catch_exceptions=False)
    assert ended.exit_code == 0 and counted == ["ours-fp32", "ours-fp8"]
    after = recorded(tmp_path)
    assert [row["graph"] for row in after["rows"]] == [graph for graph, *_ in kernel_census.ROWS]
    changed = [
        new["graph"]
        for old, new in zip(before["rows"], after["rows"], strict=True)
        if old["census"] != new["census"]
    ]
    assert changed == ["ours-fp32", "ours-fp8"]
    assert {k: v for k, v in after.items() if k != "rows"} == {k: v for k, v in before.items() if k != "rows"}


def test_only_of_another_record(counted: list[str], tmp_path: Path) -> None:
    before = recorded(tmp_path)
    words = [str(tmp_path), "--only", "ours-fp8", "--target", "sm120"]
    ended = CliRunner().invoke(kernel_census.main, words)
    assert ended.exit_code == 1
    assert ended.output.splitlines()[-1] == "Error: record.json was recorded otherwise; leave --only out"
    assert recorded(tmp_path) == before


def test_only_what_there_is(counted: list[str], tmp_path: Path) -> None:
    ended = CliRunner().invoke(kernel_census.main, [str(tmp_path), "--only", "ours-int4"])
    assert ended.exit_code == 2 and "'ours-int4' is not one of 'plain-fp32'" in ended.output
    assert counted == []


def test_the_table() -> None:
    rows = [
        {"title": "ours", "census": CENSUS},
        {"title": "theirs", "census": {"error": "no kernel of it"}},
    ]
    found = kernel_census.table(rows).splitlines()
    assert found[2:] == [
        "| ours | 171 | 71 | 3 | 0 | 16 of 16 | 0 | 1 |",
        "| theirs | no kernel of it | | | | | | |",
    ]
    assert len({line.count("|") for line in found}) == 1


def test_the_table_of_the_docs_is_that_of_the_record() -> None:
    rows = json.loads(kernel_census.RESULTS.read_text(encoding="utf-8"))["rows"]
    page = (documents.DOCS / "gpu.md").read_text(encoding="utf-8")
    assert f"<!-- kernel-census -->\n{kernel_census.table(rows)}\n<!-- /kernel-census -->" in page
