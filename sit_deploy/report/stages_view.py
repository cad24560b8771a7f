"""The ledger of a page: the stages of a bundle from teacher to engine, what each costs and gives."""

from __future__ import annotations

from typing import Any

from sit_deploy.report.figure import figure
from sit_deploy.report.types import Stage, StageRecord, StagesRecord
from sit_deploy.text import file_size


def stages_view(
    ledger: StagesRecord, doubt: str | None = None, kernels: str | None = None, data: bool = False
) -> dict[str, Any]:
    """Return the ledger as a table: a stage a row, what it changed in brackets.

    Args:
        ledger: the stages.
        doubt: of `speedup_text.time_doubt`.
        kernels: of the engine, in words.
        data: the images are the user's, with labels or without.
    """
    embeds = any(stage.cosine is not None for stage in ledger.entries)
    labelled = any(_right(stage) is not None for stage in ledger.entries)
    right = "nearest right %" if embeds else "top-1 %"
    near = ["cosine", "least"] if embeds else ["SQNR dB"]
    head = ["hop", "runs on", *([right] if labelled else []), "agree %", *near, "GMACs", "size", "ms"]
    rows, before = [], None
    for stage in ledger.entries:
        share = _right(stage)
        told = figure(share, ".2f")
        if share is not None and before is not None:
            told += f" ({share - before:+.2f})"
        before = share if share is not None else before
        row = [
            stage.name,
            stage.runtime,
            *([told] if labelled else []),
            figure(stage.agreement, ".2f"),
            *(_cosines(stage) if embeds else [_nearness(stage)]),
            f"{stage.macs / 1e9:.2f}" if stage.macs >= 1e8 else f"{stage.macs / 1e9:.3f}",
            file_size(stage.size),
            figure(stage.latency_ms, ".2f"),
        ]
        rows.append(row)
    images = f"{ledger.images} {'labelled ' if labelled else '' if data else 'synthetic '}images"
    compared = "agreement and SQNR are with the student in PyTorch"
    if embeds:
        what = "labels by the nearest other image" if labelled else "nearest other images"
        compared = f"agreement (of {what}) and cosine are with the model in PyTorch"
    timed = ""
    if any(stage.latency_ms is not None for stage in ledger.entries):
        timed = (
            f", ms the median of a batch of {ledger.batch_size} over the rounds, the hops timed turn about"
        )
    return {
        "what": f"Every hop on the same {images}; {compared}{timed}."
        + (" All images get one class: their agreement says nothing." if ledger.given == 1 else ""),
        "head": head,
        "rows": rows,
        "notes": [
            *([doubt] if doubt else []),
            *(f"{stage.name}: {stage.note}." for stage in ledger.entries if stage.note),
            *([f"{ledger.engine_stage.name}: {kernels}."] if kernels else []),
        ],
    }


def _right(stage: StageRecord) -> float | None:
    """Return the share of images that a stage is right on: by their class, or by their nearest neighbour."""
    return stage.nearest if stage.cosine is not None else stage.top1


def _cosines(stage: StageRecord) -> list[str]:
    if stage.name == Stage.STUDENT.value:
        return ["reference", "reference"]
    return [figure(stage.cosine, ".6f"), figure(stage.lowest_cosine, ".6f")]


def _nearness(stage: StageRecord) -> str:
    """Return how near the logits of a stage are to the student's."""
    if stage.agreement != 100 or stage.sqnr_db is not None:
        return figure(stage.sqnr_db, ".1f")
    return "reference" if stage.name == Stage.STUDENT.value else "exact"
