"""What a page shows of a search: the schedule that was chosen, the front of latency against closeness, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sit_deploy.methods import method_words
from sit_deploy.report import plots, speedup_text
from sit_deploy.report.figure import figure
from sit_deploy.report.search_record import PointRecord, SearchRecord

if TYPE_CHECKING:
    from sit_deploy.report.types import Evidence


_ROUNDING = 1e-9  # divergence of a model from itself, in nats


def search_headline(record: SearchRecord) -> str:
    """Say in a sentence what was found, and what of it is not as asked for."""
    missed = record.failure if record.chosen else None
    return f"{_found(record)}; but {missed}" if missed else _found(record)


def _found(record: SearchRecord) -> str:
    chosen = record.chosen
    if chosen is None:
        return f"no schedule that was built takes {record.limit_ms:.3g} ms"
    if len(chosen.stages) == 1:
        return f"{record.model} as it is keeps the limit: {chosen.ms:.3g} of {record.limit_ms:.3g} ms at {chosen.precision}"
    over = f"{record.unslimmed_ms[chosen.precision] / chosen.ms:.2f}× as fast as unslimmed"
    basis = record.unslimmed_ms.get("fp32")
    # what both make together, and what the schedule makes of it
    if basis is not None and chosen.precision != "fp32":
        over = f"{basis / chosen.ms:.2f}× as fast as unslimmed at fp32 and {over} at {chosen.precision}"
    return (
        f"{schedule_words(chosen)} takes {chosen.ms:.3g} of {record.limit_ms:.3g} ms at {chosen.precision}, {over}, and tells "
        f"{100 * chosen.closeness.agreement:.1f} % of images as it does, without training"
    )


def schedule_words(point: PointRecord) -> str:
    """Return a schedule as the options that make it."""
    if len(point.stages) == 1:
        return "unslimmed"
    stages, kept = (",".join(map(str, numbers)) for numbers in (point.stages, point.kept))
    return f"--stages {stages} --kept {kept}"


def asked_sentence(record: SearchRecord) -> str:
    """Say what was searched for."""
    return (
        f"Asked for {record.asked}: at most {record.limit_ms:.4g} ms a batch of {record.batch_size} of {record.engine} on {record.where}, "
        f"{_threads(record)}."
    )


def _threads(record: SearchRecord) -> str:
    return f"{record.threads or 'all'} thread{'' if record.threads == 1 else 's'}"


def _lost(record: SearchRecord) -> list[str]:
    """Say what was chosen loses on the images of the search; nothing where they have no labels."""
    chosen, whole = record.chosen, record.unslimmed_top1
    if chosen is None or whole is None or (top1 := chosen.closeness.top1) is None:
        return []
    return [
        f"On {record.images}: top-1 {top1:.2f} %, the unslimmed model {whole:.2f} %, before any training."
    ]


def _unknown(record: SearchRecord) -> list[str]:
    """Say what a search does not tell."""
    chosen = record.chosen
    if chosen is not None and len(chosen.stages) == 1:
        return []
    unknown = [
        "Not known: which schedule is the best after training. Schedules were compared before any; where training was tried, it made "
        "those of equal latency about equally good (docs/search.md)."
    ]
    if chosen is not None:
        foretold = (
            "" if chosen.student_ms is None else f" The latency table foretells {chosen.student_ms:.3g} ms."
        )
        unknown.append(
            f"Not known: how fast a trained student of this schedule is. It has TSMs in place of {record.method}: bench it.{foretold}"
        )
    return unknown


def search_view(record: SearchRecord, mark: str = "") -> dict[str, Any]:
    """Return what the page shows, and Markdown without its picture.

    Args:
        record: of the search.
        mark: before the title of the plot, where a page has several.
    """
    labelled = any(point.closeness.top1 is not None for point in record.points)
    counted = len({point.closeness.images for point in _shown(record.points)}) > 1
    rows = sorted(_shown(record.points), key=lambda point: point.ms)
    fastest = min(record.points, key=lambda point: point.ms)
    facts = [
        ("model", record.model),
        ("asked for", f"{record.asked}, which is {record.limit_ms:.4g} ms a batch of {record.batch_size}"),
        ("engine", record.engine),
        ("measured on", f"{record.where}, {_threads(record)}"),
        ("slimmed by", method_words(record.method)),
        ("images", record.images),
        (
            "schedules tried",
            f"{record.tried}{'' if record.finished else ', until the seconds given were used up'}",
        ),
        (
            "fastest of them",
            f"{fastest.ms:.3g} ms, {'predicted' if fastest.measured_ms is None else 'measured'}",
        ),
        ("built and timed", str(sum(point.measured_ms is not None for point in record.points))),
        ("seconds", f"{record.seconds:.0f}"),
    ]
    return {
        "title": f"{record.model}: a schedule for {record.asked}",
        "asked": asked_sentence(record),
        "headline": search_headline(record),
        "kept": record.failure is None,
        "lost": _lost(record),
        "now": [],
        "unknown": _unknown(record),
        "notes": record.notes,
        "plot": partial(
            plots.trade_off, [_point(p) for p in rows], record.limit_ms, mark + "closeness over latency"
        ),
        "what": "Divergence is the Kullback-Leibler divergence of the slimmed model's probabilities from the unslimmed model's, in nats, "
        "before any training; of engines that were built, it is their own. Latencies are measured where a range stands, else predicted "
        "from the latency table."
        + (
            " How often each is as fast as unslimmed is of the same precision."
            if len(record.unslimmed_ms) > 1
            else ""
        )
        + (
            " Not all were compared on the same images: the time was up; where their numbers differ, small differences say nothing."
            if counted
            else ""
        ),
        "head": (
            *("schedule", "precision", "ms", "over unslimmed", "divergence", "agree %"),
            *(("top-1 %",) if labelled else ()),
            *(("images",) if counted else ()),
            "",
        ),
        "rows": [_row(point, record, labelled, counted) for point in rows],
        "commands": list(record.commands.items()),
        "facts": facts,
    }


def found_view(evidence: Evidence, mark: str = "") -> dict[str, Any] | None:
    """Return `search_view` of the search that built a bundle, with what its engine takes now; None where none did."""
    record, engine = evidence.search, evidence.ledger.engine_stage
    if record is None:
        return None
    ms, now = engine.latency_ms, []
    if ms is not None and evidence.ledger.batch_size == record.batch_size:
        verdict = "within" if ms <= record.limit_ms else "above"
        if speedup_text.time_doubt(evidence.speedups):
            now = [f"Whether it keeps the limit on this machine is {speedup_text.NOT_NOW}."]
        else:
            now = [
                f"This report timed it at {ms:.3g} ms on {evidence.machine.cpu_model}, {verdict} the limit of {record.limit_ms:.3g} ms."
            ]
    return {**search_view(record, mark), "now": now}


def _shown(points: Sequence[PointRecord]) -> list[PointRecord]:
    """Return what is worth a row: the front, and what was built."""
    return [point for point in points if point.front or point.chosen or point.measured_ms is not None]


def _row(point: PointRecord, record: SearchRecord, labelled: bool, counted: bool) -> tuple[str, ...]:
    close = point.closeness
    spread = "" if point.low_ms is None else f" ({point.low_ms:.3g}–{point.high_ms:.3g})"
    state = "chosen" if point.chosen else "front" if point.front else "built"
    before = record.unslimmed_ms.get(point.precision)
    return (
        schedule_words(point),
        point.precision,
        f"{point.ms:.3g}{spread}",
        "—" if before is None else f"{before / point.ms:.2f}×",
        f"{close.divergence:.3g}" if close.divergence > _ROUNDING else "0",
        f"{100 * close.agreement:.1f}",
        *((figure(close.top1, ".2f"),) if labelled else ()),
        *((str(close.images),) if counted else ()),
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
