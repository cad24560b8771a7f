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
    blocks = [f"# {escaped(title)}", escaped(subtitle)]
    if overview:
        for bundle in overview["bundles"]:
            blocks += [f"## {escaped(bundle['name'])}", *_verdict(bundle["verdict"])]
        blocks += ["## Side by side", table(overview["head"], overview["table"], 4)]
    for page in pages:
        blocks += [f"# {escaped(page['name'])}"] if overview else _verdict(page["verdict"])
        blocks += _page(page)
    return "\n\n".join(blocks) + "\n"


def _page(page: Mapping[str, Any]) -> Iterator[str]:
    for note in page["notes"]:
        yield f"**{escaped(note['text'])}**" if note["warns"] else escaped(note["text"])
    ledger, accuracy, latency = page["ledger"], page["accuracy"], page["latency"]
    yield from ("## Ledger", escaped(ledger["what"]), table(ledger["head"], ledger["rows"], 2))
    yield from map(escaped, ledger["notes"])
    yield f"## {accuracy['heading'] if accuracy else 'Accuracy'}"
    if accuracy:
        yield from (escaped(accuracy["what"]), table(accuracy["head"], accuracy["rows"]))
        yield escaped(accuracy["difference"])
        if accuracy["warning"]:
            yield f"**{escaped(accuracy['warning'])}**"
        for doubt in accuracy["doubts"]:
            yield f"**{escaped(doubt)}**"
        if accuracy["classes"]:
            yield "### Classes that changed most"
            yield table(("class", "images", "PyTorch right", "engine right"), accuracy["classes"])
        if accuracy["flips"]:
            yield "### Images whose class changed"
            columns = ("image", "label", "reference", "engine")
            rows = [[flip[column] for column in columns] for flip in accuracy["flips"]]
            yield table(("image", "is", "PyTorch", "engine"), rows, 4)
    else:
        yield escaped(page["no_accuracy"])
    if latency:
        yield from ("## Latency", table(latency["head"], latency["rows"]), escaped(latency["around"]))
    for part in page["elsewhere"]:
        yield from (f"## {escaped(part['name'])}", escaped(part["what"]))
        if part["rows"]:
            yield table(part["head"], part["rows"])
        yield from map(escaped, part["notes"])
    if page["search"]:
        yield from ("## How the schedule was chosen", *search_blocks(page["search"], "###"))
    if page["drift"]:
        yield from ("## Where the error comes in", escaped(page["drift"]["what"]))
    if page["layers"]:
        yield from ("## Where the time goes", escaped(page["layers"]["what"]))
        yield table(page["layers"]["head"], page["layers"]["rows"], 2)
    if page["tuning"]:
        yield from ("## How the plan was chosen", escaped(page["tuning"]["what"]))
        yield table(page["tuning"]["head"], page["tuning"]["rows"], 2)
    yield from ("## Facts", table(("", ""), page["facts"], 2))


def search_blocks(view: Mapping[str, Any], level: str = "##") -> Iterator[str]:
    """Return what a search says: its front, its choice, and the commands that go on from it.

    Args:
        view: of `search_view`.
        level: of headings.
    """
    yield from (escaped(view["asked"]), f"**{escaped(view['headline'])}**")
    yield from map(escaped, (*view["lost"], *view["now"], *view["unknown"], *view["notes"]))
    yield from (f"{level} Front", escaped(view["what"]), table(view["head"], view["rows"], 2))
    for what, command in view["commands"]:
        yield f"{level} {escaped(what)}\n\n    {command}"


_MARKS = {Severity.BAD.value: "✗", Severity.UNSURE.value: "?", Severity.GOOD.value: "✓"}


def _verdict(verdict: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{escaped(verdict['headline'])}**"
    if lines := [f"- {_MARKS[severity]} {escaped(reason)}" for severity, reason in verdict["reasons"]]:
        yield "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table whose first `left` columns are words, and the others figures."""
    rules = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in (map(escaped, head), rules, *(map(escaped, r) for r in rows))
    )


def escaped(value: object) -> str:
    """Return a value such that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(str(value).split()))
