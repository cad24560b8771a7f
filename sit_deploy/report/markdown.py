"""The report as Markdown, for a pull request or a wiki: the page without its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sit_deploy.report.verdict import Severity


def render(
    title: str, subtitle: str, pages: Sequence[Mapping[str, Any]], overview: Mapping[str, Any] | None
) -> str:
    """Return the Markdown of what `view` and the overview say."""
    blocks = [f"# {_text(title)}", _text(subtitle)]
    if overview:
        for bundle in overview["bundles"]:
            blocks += [f"## {_text(bundle['name'])}", *_verdict(bundle["verdict"])]
        blocks += ["## Side by side", _table(overview["head"], overview["table"], 4)]
    for page in pages:
        blocks += [f"# {_text(page['name'])}"] if overview else _verdict(page["verdict"])
        blocks += _page(page)
    return "\n\n".join(blocks) + "\n"


def _page(page: Mapping[str, Any]) -> Iterator[str]:
    for note in page["notes"]:
        yield f"**{_text(note['text'])}**" if note["warns"] else _text(note["text"])
    ledger, accuracy, latency = page["ledger"], page["accuracy"], page["latency"]
    yield from ("## Ledger", _text(ledger["what"]), _table(ledger["head"], ledger["rows"], 2))
    yield from map(_text, ledger["notes"])
    yield "## Accuracy"
    if accuracy:
        yield from (_text(accuracy["what"]), _table(accuracy["head"], accuracy["rows"]))
        yield _text(accuracy["difference"])
        if accuracy["warning"]:
            yield f"**{_text(accuracy['warning'])}**"
        for doubt in accuracy["doubts"]:
            yield f"**{_text(doubt)}**"
        if accuracy["classes"]:
            yield "### Classes that changed most"
            yield _table(("class", "images", "PyTorch right", "engine right"), accuracy["classes"])
        if accuracy["flips"]:
            yield "### Images whose class changed"
            columns = ("image", "label", "reference", "engine")
            rows = [[flip[column] for column in columns] for flip in accuracy["flips"]]
            yield _table(("image", "is", "PyTorch", "engine"), rows, 4)
    else:
        yield _text(page["no_accuracy"])
    if latency:
        yield from ("## Latency", _table(latency["head"], latency["rows"]), _text(latency["around"]))
    for part in page["elsewhere"]:
        yield from (f"## {_text(part['name'])}", _text(part["what"]))
        if part["rows"]:
            yield _table(part["head"], part["rows"])
        yield from map(_text, part["notes"])
    if page["drift"]:
        yield from ("## Where the error comes in", _text(page["drift"]["what"]))
    if page["layers"]:
        yield from ("## Where the time goes", _text(page["layers"]["what"]))
        yield _table(page["layers"]["head"], page["layers"]["rows"], 2)
    if page["tuning"]:
        yield from ("## How the plan was chosen", _text(page["tuning"]["what"]))
        yield _table(page["tuning"]["head"], page["tuning"]["rows"], 2)
    yield from ("## Facts", _table(("", ""), page["facts"], 2))


_MARKS = {Severity.BAD.value: "✗", Severity.UNSURE.value: "?", Severity.GOOD.value: "✓"}


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{_text(verdict['headline'])}**"
    if lines := [f"- {_MARKS[severity]} {_text(reason)}" for severity, reason in verdict["reasons"]]:
        yield "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table whose first `left` columns are words, and the others figures."""
    rules = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in (map(_text, head), rules, *(map(_text, r) for r in rows))
    )


def _text(value: object) -> str:
    """Return a value such that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(str(value).split()))
