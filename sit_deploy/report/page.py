"""Pages of reports: report.json and report.html of a build, and the page of measured bundles, of the same parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sit_deploy.report import speedup_text
from sit_deploy.report.build_types import BuildReport
from sit_deploy.report.figure import figure
from sit_deploy.report.types import Evidence, Stage
from sit_deploy.report.verdict import JudgedBundle
from sit_deploy.report.view import build_view, evidence_view, verdict_view
from sit_deploy.text import file_size


def write_build_report(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write report.json and a self-contained report.html of the same facts into a folder.

    Args:
        folder: of the bundle.
        fields: of `BuildReport`.

    Raises:
        ValueError: they hold a number that JSON has not.
    """
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    report = BuildReport.from_dict(json.loads(text))
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def render(report: BuildReport) -> str:
    """Return the page of a build; every value of it is escaped."""
    view = build_view(report)
    built = f"As built, on {report.compared_on}. On a machine of yours, sit-deploy report measures it."
    return _render(view["name"], built, [view], None)


def render_evidence(bundles: Sequence[JudgedBundle], form: str = "html") -> str:
    """Return the page of measured bundles.

    Args:
        bundles: measured and judged.
        form: "html", one file that loads nothing; "md"; or "json", which `read_evidence` reads.
    """
    if form == "json":
        rows = [judged.to_dict() for judged in bundles]
        return json.dumps({"bundles": rows}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    pages = [evidence_view(judged) for judged in bundles]
    dates = sorted({judged.evidence.date[:10] for judged in bundles})
    machines = sorted({judged.evidence.machine.cpu_model for judged in bundles})
    subtitle = f"Measured {' and '.join(dates)} on {' and '.join(machines)} by sit-deploy"
    title, overview = f"{len(bundles)} bundles", _overview(bundles) if len(bundles) > 1 else None
    if overview is None:
        title = pages[0]["name"]
        subtitle = f"{build_view(bundles[0].evidence.build)['name']}. {subtitle}"
    if form == "md":
        from sit_deploy.report import markdown

        return markdown.render(title, subtitle, pages, overview)
    return _render(title, subtitle, pages, overview)


def _overview(bundles: Sequence[JudgedBundle]) -> dict[str, Any]:
    from sit_deploy.report import plots

    table, points = [], []
    embeds = bundles[0].evidence.embedding is not None
    for judged in bundles:
        evidence, verdict = judged.evidence, judged.verdict
        engine, build = evidence.ledger.engine_stage, evidence.build
        latency = engine.latency_ms and engine.latency_ms / evidence.ledger.batch_size
        table.append(
            (
                evidence.name,
                build.model.name,
                build.precision,
                build.engine.kind,
                *_gives(evidence),
                figure(latency, ".2f"),
                speedup_text.factor(evidence.speedups.get(Stage.STUDENT.value)),
                file_size(engine.size),
                verdict.outcome.value + ("" if verdict.speed_is_known else f"; speed {speedup_text.NOT_NOW}"),
            )
        )
        if latency and (share := _share(evidence)):
            timed = (
                f"{evidence.name} (time {speedup_text.NOT_NOW})"
                if speedup_text.time_doubt(evidence.speedups)
                else evidence.name
            )
            points.append(plots.Point(timed, build.engine.kind, latency, *share))
    return {
        "bundles": [
            {"name": judged.evidence.name, "verdict": verdict_view(judged.verdict)} for judged in bundles
        ],
        "plot": partial(
            plots.scatter, points, "accuracy over latency", "nearest right" if embeds else "top-1"
        )
        if points
        else None,
        "head": (
            *("bundle", "model", "precision", "engine"),
            *(("nearest right %", "drop", "least cosine") if embeds else ("top-1 %", "drop")),
            *("ms an image", "over PyTorch", "size", "verdict"),
        ),
        "table": table,
    }


def _gives(evidence: Evidence) -> list[str]:
    """Return what a bundle's engine is worth: its top-1 and what it lost; of vectors, that of neighbours, and the least cosine."""
    found, accuracy = evidence.embedding, evidence.accuracy
    if found is None:
        return [
            figure(accuracy.engine_top1 if accuracy else None, ".2f"),
            figure(accuracy.drop if accuracy else None, ".2f"),
        ]
    drop = found.paired.drop if found.paired else None
    return [figure(found.engine, ".2f"), figure(drop, ".2f"), f"{found.cosine_min:.6f}"]


def _share(evidence: Evidence) -> tuple[float, float, float] | None:
    """Return the share of images that the engine is right on, in percent, and its interval."""
    found, accuracy = evidence.embedding, evidence.accuracy
    if accuracy is not None:
        return accuracy.engine_top1, *accuracy.engine_top1_interval
    if found is not None and found.engine is not None and found.engine_interval is not None:
        return found.engine, *found.engine_interval
    return None


def _render(
    title: str, subtitle: str, pages: Sequence[Mapping[str, Any]], overview: Mapping[str, Any] | None
) -> str:
    from markupsafe import Markup

    optional = ("figures", "ledger", "latency", "elsewhere", "search", "drift")  # of measured bundles alone
    shown = [{**dict.fromkeys(optional), **page} for page in pages]
    for page in shown:  # the plots are ours, and what they show of a bundle's is escaped in them
        for part in ("latency", "search", "drift", "layers", "tuning"):
            if page[part] and page[part]["plot"]:
                page[part] = {**page[part], "plot": Markup(page[part]["plot"]())}
    if overview and overview["plot"]:
        overview = {**overview, "plot": Markup(overview["plot"]())}
    return (
        template("page.html.j2").render(title=title, subtitle=subtitle, pages=shown, overview=overview) + "\n"
    )


def template(name: str) -> Any:
    """Return a template of this folder, whose values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sit_deploy.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
