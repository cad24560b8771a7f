"""What a page says of several bundles beside one another: which to take, all in a table with their teachers, and every verdict once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sit_deploy.report import plots, speedup_text
from sit_deploy.report.figure import figure
from sit_deploy.report.recommend import headline, image_ms, is_timed, reason, recommend
from sit_deploy.report.types import Evidence, Stage, StageRecord
from sit_deploy.report.verdict import JudgedBundle, Outcome
from sit_deploy.report.view import verdict_view
from sit_deploy.text import file_size

_TEACHER = "teacher"


def overview(bundles: Sequence[JudgedBundle]) -> dict[str, Any]:
    """Return what a page says of all bundles."""
    found = recommend(bundles)
    outcomes = {judged.verdict.outcome for judged in bundles}
    severity = verdict_view(found.taken.verdict)["severity"] if found else "unsure"
    if outcomes == {Outcome.DO_NOT_SHIP}:
        severity = "bad"
    teachers = _teachers(bundles)
    head, rows, common = _table(bundles, teachers)
    points = [*filter(None, (_point(judged.evidence) for judged in bundles)), *_teacher_points(teachers)]
    return {
        "severity": severity,
        "headline": headline(found, bundles),
        "why": reason(found, bundles),
        "plot": partial(plots.scatter, points, "accuracy over latency") if points else None,
        "common": f"All: {', '.join(common)}." if common else "",
        "head": head,
        "table": rows,
        "verdicts": verdict_groups(bundles),
    }


def verdict_groups(bundles: Sequence[JudgedBundle]) -> list[dict[str, Any]]:
    """Return every headline once, with the bundles that it is of, the reasons that all of them have, and those of each alone."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for judged in bundles:
        view = verdict_view(judged.verdict)
        groups.setdefault(view["headline"], []).append((judged.evidence.name, view))
    told = []
    for said, members in groups.items():
        shared = [
            one for one in members[0][1]["reasons"] if all(one in view["reasons"] for _, view in members)
        ]
        own = [
            (name, left)
            for name, view in members
            if (left := [one for one in view["reasons"] if one not in shared])
        ]
        severity = members[0][1]["severity"]
        names = [name for name, _ in members]
        told.append({"headline": said, "severity": severity, "names": names, "shared": shared, "own": own})
    return told


def _table(
    bundles: Sequence[JudgedBundle], teachers: Sequence[tuple[str, Evidence, StageRecord]]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return head and rows, the teachers' last, and what is left out since all bundles have it in common."""
    builds = [judged.evidence.build for judged in bundles]
    columns = {
        "model": [build.model.name for build in builds],
        "precision": [build.precision for build in builds],
        "engine": [build.engine.kind for build in builds],
    }
    common = [cells[0] for cells in columns.values() if len(set(cells)) == 1]
    told = {name: cells for name, cells in columns.items() if len(set(cells)) > 1}
    head = ["bundle", *told, "top-1 %", "drop", "ms an image", "over PyTorch", "size", "verdict"]
    rows = []
    for index, judged in enumerate(bundles):
        evidence, verdict = judged.evidence, judged.verdict
        accuracy = evidence.accuracy
        rows.append(
            [
                evidence.name,
                *(cells[index] for cells in told.values()),
                figure(accuracy.engine_top1 if accuracy else None, ".2f"),
                figure(accuracy.drop if accuracy else None, ".2f"),
                figure(image_ms(evidence), ".2f"),
                speedup_text.ranged(evidence.speedups.get(Stage.STUDENT.value)),
                file_size(evidence.ledger.engine_stage.size),
                verdict.outcome.value + ("" if verdict.speed_is_known else f"; speed {speedup_text.NOT_NOW}"),
            ]
        )
    for name, evidence, stage in teachers:
        cells = {"model": "", "precision": "", "engine": stage.runtime}
        rows.append(
            [
                name,
                *(cells[column] for column in told),
                figure(_teacher_top1(evidence), ".2f"),
                "—",
                figure(stage.latency_ms and stage.latency_ms / evidence.ledger.batch_size, ".2f"),
                "—",
                file_size(stage.size),
                "" if "engine" in told else f"on {stage.runtime}",
            ]
        )
    return head, rows, common


def _teachers(bundles: Sequence[JudgedBundle]) -> list[tuple[str, Evidence, StageRecord]]:
    """Return the teachers that were measured, by name: one alone where all bundles have the same; its engine, where it was given as a bundle."""
    found: dict[tuple[Any, ...], tuple[str, Evidence, StageRecord]] = {}
    for judged in bundles:
        evidence = judged.evidence
        stages = {stage.name: stage for stage in evidence.ledger.entries}
        stage = stages.get(Stage.TEACHER_ENGINE.value) or stages.get(Stage.TEACHER.value)
        if stage is not None:
            key = (stage.name, stage.macs, stage.size, _teacher_top1(evidence))
            found.setdefault(key, (evidence.name, evidence, stage))
    if len(found) == 1:
        return [(_TEACHER, evidence, stage) for _, evidence, stage in found.values()]
    return [(f"{_TEACHER} of {name}", evidence, stage) for name, evidence, stage in found.values()]


def _teacher_top1(evidence: Evidence) -> float | None:
    teacher = evidence.accuracy and evidence.accuracy.teacher
    return teacher.top1 if teacher else None


def _teacher_points(teachers: Sequence[tuple[str, Evidence, StageRecord]]) -> list[plots.Point]:
    points = []
    for name, evidence, stage in teachers:
        teacher = evidence.accuracy and evidence.accuracy.teacher
        if teacher and stage.latency_ms:
            ms = stage.latency_ms / evidence.ledger.batch_size
            points.append(
                plots.Point(name, f"{_TEACHER}, {stage.runtime}", ms, teacher.top1, *teacher.top1_interval)
            )
    return points


def _point(evidence: Evidence) -> plots.Point | None:
    accuracy, ms = evidence.accuracy, image_ms(evidence)
    if not accuracy or not ms:
        return None
    name = evidence.name if is_timed(evidence) else f"{evidence.name} (time {speedup_text.NOT_NOW})"
    return plots.Point(
        name, evidence.build.engine.kind, ms, accuracy.engine_top1, *accuracy.engine_top1_interval
    )
