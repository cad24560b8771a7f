"""The page of a search: the schedule that was chosen, the front of latency against closeness, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sit_deploy.report import plots
from sit_deploy.report.figure import figure
from sit_deploy.report.search_record import PointRecord, SearchRecord


def search_headline(record: SearchRecord) -> str:
    """Say in a sentence what was found."""
    chosen = record.chosen
    if chosen is None:
        return f"no schedule that was built takes {record.limit_ms:.3g} ms"
    if len(chosen.stages) == 1:
        return f"{record.model} as it is keeps the limit: {chosen.ms:.3g} of {record.limit_ms:.3g} ms at {chosen.precision}"
    before = record.unslimmed_ms[chosen.precision]
    return (
        f"{schedule_words(chosen)} takes {chosen.ms:.3g} of {record.limit_ms:.3g} ms at {chosen.precision}, {before / chosen.ms:.2f}× as fast as "
        f"unslimmed, and tells {100 * chosen.closeness.agreement:.1f} % of images as it does, without training"
    )


def schedule_words(point: PointRecord) -> str:
    """Return a schedule as the options that make it."""
    if len(point.stages) == 1:
        return "unslimmed"
    stages, kept = (",".join(map(str, numbers)) for numbers in (point.stages, point.kept))
    return f"--stages {stages} --kept {kept}"


def search_view(record: SearchRecord) -> dict[str, Any]:
    """Return what the page shows, and Markdown without its picture."""
    labelled = any(point.closeness.top1 is not None for point in record.points)
    rows = sorted(_shown(record.points), key=lambda point: point.ms)
    fastest = min(point.ms for point in record.points)
    facts = [
        ("model", record.model),
        ("asked for", f"{record.asked}, which is {record.limit_ms:.4g} ms a batch of {record.batch_size}"),
        ("engine", record.engine),
        ("measured on", f"{record.where}, {record.threads or 'all'} threads"),
        ("slimmed by", f"{record.method}, without training"),
        ("images", record.images),
        (
            "schedules tried",
            f"{record.tried}{'' if record.finished else ', until the seconds given were used up'}",
        ),
        ("fastest of them", f"{fastest:.3g} ms"),
        ("seconds", f"{record.seconds:.0f}"),
    ]
    return {
        "title": f"{record.model}: a schedule for {record.asked}",
        "headline": search_headline(record),
        "notes": record.notes,
        "plot": partial(
            plots.trade_off, [_point(p) for p in rows], record.limit_ms, "closeness over latency"
        ),
        "what": "Divergence is the Kullback-Leibler divergence of the slimmed model's probabilities from the unslimmed model's, in nats, "
        "before any training; of engines that were built, it is their own. Latencies are measured where a range stands, else predicted "
        "from the latency table.",
        "head": (
            *("schedule", "precision", "ms", "over unslimmed", "divergence", "agree %"),
            *(("top-1 %",) if labelled else ()),
            "",
        ),
        "rows": [_row(point, record, labelled) for point in rows],
        "commands": list(record.commands.items()),
        "facts": facts,
    }


def _shown(points: Sequence[PointRecord]) -> list[PointRecord]:
    """Return what is worth a row: the front, and what was built."""
    return [point for point in points if point.front or point.chosen or point.measured_ms is not None]


def _row(point: PointRecord, record: SearchRecord, labelled: bool) -> tuple[str, ...]:
    close = point.closeness
    spread = "" if point.low_ms is None else f" ({point.low_ms:.3g}–{point.high_ms:.3g})"
    state = "chosen" if point.chosen else "front" if point.front else "built"
    before = record.unslimmed_ms.get(point.precision)
    return (
        schedule_words(point),
        point.precision,
        f"{point.ms:.3g}{spread}",
        "—" if before is None else f"{before / point.ms:.2f}×",
        f"{close.divergence:.3g}",
        f"{100 * close.agreement:.1f}",
        *((figure(close.top1, ".2f"),) if labelled else ()),
        f"not measurable: {point.doubt}" if point.doubt else state,
    )


def _point(point: PointRecord) -> plots.TradeOff:
    return plots.TradeOff(
        point.name if len(point.stages) > 1 else "unslimmed",
        point.precision,
        point.ms,
        point.closeness.divergence,
        point.measured_ms is not None,
        point.front,
        point.chosen,
    )


def render_search(record: SearchRecord, form: str = "html") -> str:
    """Return the page of a search, "html" or "md"; every value of it is escaped."""
    view = search_view(record)
    subtitle = f"Searched {record.date[:10]} on {record.where} by sit-deploy"
    if form == "md":
        from sit_deploy.report.markdown import escaped, table

        blocks = [f"# {escaped(view['title'])}", escaped(subtitle), f"**{escaped(view['headline'])}**"]
        blocks += map(escaped, view["notes"])
        blocks += ["## Front", escaped(view["what"]), table(view["head"], view["rows"], 2)]
        blocks += [f"## {escaped(what)}\n\n    {command}" for what, command in view["commands"]]
        blocks += ["## Facts", table(("", ""), view["facts"], 2)]
        return "\n\n".join(blocks) + "\n"
    from markupsafe import Markup

    from sit_deploy.report.page import template

    shown = {**view, "plot": Markup(view["plot"]())}
    return template("search.html.j2").render(subtitle=subtitle, view=shown) + "\n"
