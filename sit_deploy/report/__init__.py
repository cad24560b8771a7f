"""report.json and report.html of a build, and the report of measured bundles: one page, of the same parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sit_deploy.measure import speed
from sit_deploy.report.view import build_view, engine_entry, evidence_view, figure, file_size, time_doubt


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.json and a self-contained report.html of the same facts into `folder`."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a build; every value of it is escaped."""
    view = build_view(report)
    return _render(view["name"], _build_words(report), [view], None)


def render_evidence(rows: Sequence[Mapping[str, Any]], form: str = "html") -> str:
    """Return the page of measured bundles (`evidence.gather`).

    Args:
        rows: of the bundles.
        form: "html", one file that loads nothing; "md"; or "json", which `evidence.read_evidence` reads.
    """
    if form == "json":
        return json.dumps({"bundles": list(rows)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    pages = [evidence_view(row) for row in rows]
    first = rows[0]
    dates = sorted({str(row["date"])[:10] for row in rows})
    machines = sorted({str(row["machine"]["cpu_model"]) for row in rows})
    subtitle = f"Measured {' and '.join(dates)} on {' and '.join(machines)} by sit-deploy"
    title, overview = f"{len(rows)} bundles", _overview(rows) if len(rows) > 1 else None
    if overview is None:
        title = pages[0]["name"]
        subtitle = f"{build_view(first['build'])['name']}. {subtitle}"
    if form == "md":
        from sit_deploy.report import markdown

        return markdown.render(title, subtitle, pages, overview)
    return _render(title, subtitle, pages, overview)


def _build_words(report: Mapping[str, Any]) -> str:
    return f"As built, on {report['compared_on']}. `sit-deploy report` measures it on a machine of yours."


def _overview(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from sit_deploy.report import plots

    table, points = [], []
    for row in rows:
        accuracy, entry, build = row["accuracy"], engine_entry(row), row["build"]
        latency = entry["latency_ms"] and entry["latency_ms"] / row["ledger"]["batch_size"]
        table.append(
            (
                row["name"],
                build["model"]["name"],
                build["precision"],
                build["engine"]["kind"],
                figure(accuracy and accuracy["engine_top1"], ".2f"),
                figure(accuracy and accuracy["drop"], ".2f"),
                figure(latency, ".2f"),
                speed.factor(row["speedups"].get("student")),
                file_size(entry["size"]),
                row["verdict"]["outcome"]
                + (f"; speed {speed.NOT_NOW}" if row["verdict"]["unmeasured"] else ""),
            )
        )
        if accuracy and latency:
            low, high = accuracy["engine_top1_interval"]
            name = f"{row['name']} (time {speed.NOT_NOW})" if time_doubt(row) else row["name"]
            points.append(
                {
                    **{"name": name, "engine": build["engine"]["kind"], "latency_ms": latency},
                    **{"top1": accuracy["engine_top1"], "low": low, "high": high},
                }
            )
    return {
        "rows": rows,
        "plot": plots.scatter(points, "accuracy over latency") if points else None,
        "head": (
            *("bundle", "model", "precision", "engine", "top-1 %", "drop"),
            *("ms an image", "over PyTorch", "size", "verdict"),
        ),
        "table": table,
    }


def _render(
    title: str, subtitle: str, pages: Sequence[Mapping[str, Any]], overview: Mapping[str, Any] | None
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("sit_deploy.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    optional = ("figures", "ledger", "latency", "drift")  # of measured bundles alone
    shown = [{**dict.fromkeys(optional), **page} for page in pages]
    for page in shown:  # the plots are ours, and what they show of a bundle's is escaped in them
        for part in ("latency", "drift", "layers"):
            if page[part] and page[part]["plot"]:
                page[part] = {**page[part], "plot": Markup(page[part]["plot"])}
    if overview and overview["plot"]:
        overview = {**overview, "plot": Markup(overview["plot"])}
    template = environment.get_template("page.html.j2")
    return template.render(title=title, subtitle=subtitle, pages=shown, overview=overview) + "\n"
