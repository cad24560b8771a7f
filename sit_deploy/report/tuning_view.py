"""What a page, a terminal and `inspect` show of a plan that was chosen by measuring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec import UNSET

from sit_deploy.report import plots
from sit_deploy.report.build_types import TunedPlan, TuningRecord
from sit_deploy.report.tuning_text import range_text

_NOISE = "times differed too much to tell plans apart"


def tuning_sentence(tuning: TuningRecord) -> str:
    """Say in a sentence, without a full stop, which plan was chosen and by what."""
    tried = _tried(tuning)
    if tuning.instead is not UNSET:
        return f"8 bits were given up for {_given_up(tuning)} ({tried})"
    if not tuning.settled or tuning.chosen is None:
        why = (
            "the seconds were used up first"
            if tuning.verdict == "no time"
            else next((plan.doubt for plan in tuning.candidates if plan.doubt), _NOISE)
        )
        return f"not tuned, the default groups are in 8 bits: {why} ({tried})"
    chosen = tuning.chosen
    db = "" if chosen.sqnr_db is None else f", its logits on calibration images at {chosen.sqnr_db:.1f} dB"
    drop = "" if chosen.drop is None else f", {chosen.drop:+.2f} points of top-1 lost"
    fastest = "the fastest" if tuning.tie is None else "the most accurate of those as fast as the fastest"
    return (
        f"tuned: {chosen.words(tuning.default)}, {range_text(chosen.ratio, chosen.low, chosen.high_quartile)} as fast as fp32"
        f"{db}{drop}; {fastest} with {tuning.limit} ({tried})"
    )


def _tried(tuning: TuningRecord) -> str:
    """Say how many plans were timed, and how many times were kept from an earlier build."""
    plans = sum(bool(plan.groups) for plan in tuning.candidates)
    timed = plans if tuning.timed is UNSET else min(plans, tuning.timed)
    text = f"{timed} plan{'s' if timed != 1 else ''} timed in {tuning.seconds:.0f} s"
    kept = plans - timed
    return f"{text}, {kept} time{'s' if kept != 1 else ''} kept from an earlier build" if kept else text


def _given_up(tuning: TuningRecord) -> str:
    built, fast = tuning.chosen, ""
    if built is not None and built.rest != "fp32" and built.doubt is None:
        fast = f", {range_text(built.ratio, built.low, built.high_quartile)} as fast as fp32"
    if tuning.verdict == "none":
        return f"{tuning.instead}{fast}: no plan keeps {tuning.limit}"
    return f"{tuning.instead}{fast}: no plan with {tuning.limit} is faster"


def tuning_view(tuning: TuningRecord | None, mark: str = "") -> dict[str, Any] | None:
    """Return what a page says of a tuning: a plot, and a table of all that was measured, the fastest first."""
    if tuning is None:
        return None
    words = tuning_sentence(tuning)
    rows = sorted(tuning.candidates, key=lambda plan: -plan.ratio)
    drops = any(plan.drop is not None for plan in rows)
    points = _points(rows)
    what = (
        f"{words[:1].upper()}{words[1:]}. Times are over those of the float32 engine in alternated rounds, with quartiles; SQNR is of "
        "the logits on calibration images, as the engine computes them; a dash where a group gained no time and no error was measured."
    )
    if tuning.tie is not None:
        what += f" A tie with {tuning.tie.words(tuning.default)}, which is less accurate."
    if not tuning.finished:
        what += " The seconds given ended the search early."
    return {
        "plot": partial(plots.front, points, mark + "time against error of the plans") if points else None,
        "what": what,
        "head": ("", "in 8 bits", "over fp32", "ms", "SQNR dB", *(["points lost"] if drops else []), ""),
        "rows": [(str(number), *_row(plan, tuning, drops)) for number, plan in enumerate(rows, 1)],
    }


def _row(plan: TunedPlan, tuning: TuningRecord, drops: bool) -> tuple[str, ...]:
    state = (
        "chosen"
        if plan.chosen and tuning.settled
        else "built"
        if plan.chosen
        else "front"
        if plan.front
        else ""
    )
    return (
        plan.words(tuning.default),
        range_text(plan.ratio, plan.low, plan.high_quartile),
        f"{plan.ms:.2f}",
        "—" if plan.sqnr_db is None else f"{plan.sqnr_db:.1f}",
        *(["—" if plan.drop is None else f"{plan.drop:+.2f}"] if drops else []),
        f"not measurable: {plan.doubt}" if plan.doubt else state,
    )


def _points(rows: Sequence[TunedPlan]) -> list[plots.PlanPoint]:
    """Return the points of the plot, numbered as the table is; the float32 engine has none."""
    points = []
    for number, plan in enumerate(rows, 1):
        kind = f"8 bits beside {plan.rest}" if plan.groups else f"{plan.rest} alone"
        if plan.sqnr_db is None or plan.doubt is not None or not (plan.groups or plan.rest != "fp32"):
            continue
        figures = (plan.ratio, plan.low, plan.high_quartile, plan.sqnr_db)
        points.append(plots.PlanPoint(number, *figures, kind, plan.front, plan.chosen))
    return points
