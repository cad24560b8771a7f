"""Putting a benchmark's table into a page of the docs, so that no figure is copied by hand."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def write_between(page: str, mark: str, text: str) -> None:
    """Replace what docs/PAGE has between `<!-- mark -->` and `<!-- /mark -->`."""
    path = DOCS / page
    before, rest = path.read_text(encoding="utf-8").split(f"<!-- {mark} -->\n")
    after = rest.split(f"<!-- /{mark} -->")[1]
    path.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}", encoding="utf-8")
