"""What a search is asked, what a file of one holds, and the folder of one with a bundle."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.search.request import SearchRequest
from tests.helpers.bundles import load_manifest


def point(
    stages: list[int],
    kept: list[int],
    ms: float,
    divergence: float,
    *,
    chosen: bool = False,
    front: bool = True,
    measured: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a schedule that was tried."""
    score = {"divergence": divergence, "agreement": 0.95, "images": 64, "top1": 88.0}
    fields: dict[str, Any] = {
        "stages": stages,
        "kept": kept,
        "precision": "fp32",
        "predicted_ms": ms,
        "score": score,
    }
    if measured:
        fields |= {"measured_ms": measured, "low_ms": measured * 0.98, "high_ms": measured * 1.03}
        fields["engine_score"] = {**score, "agreement": 0.9}
    return {**fields, "front": front, "chosen": chosen, **more}


RECORD: dict[str, Any] = {
    "schema": 1, "date": "2026-11-27T10:00:00+00:00", "model": "lvvit_nano", "engine": "openvino 2026.4", "where": "a CPU", "batch_size": 1,
    "threads": 2, "limit_ms": 1.0, "asked": "1 ms", "method": "transform", "images": "64 of 100 images in photos, labelled",
    "unslimmed_ms": {"fp32": 2.0}, "unslimmed_top1": 90.0, "tried": 130, "finished": True, "seconds": 61.5,
    "points": [
        point([8], [49], 2.0, 0.0, measured=2.0),
        point([2, 3, 3], [49, 24, 12], 0.95, 0.04, chosen=True, measured=0.98),
        point([1, 7], [49, 12], 0.8, 0.2),
        point([1, 7], [49, 13], 0.9, 0.3, front=False),
    ],
    "commands": {"Train it by FRD": "sit-deploy train --model lvvit_nano --stages 2,3,3 --kept 49,24,12"},
    "notes": ["seconds <ran> out"],
}  # fmt: skip


def search_fields(**changes: Any) -> dict[str, Any]:
    """Return what search.json holds."""
    return copy.deepcopy({**RECORD, **changes})


def search_folder(bundle: Path, folder: Path, **changes: Any) -> Path:
    """Copy a bundle to where a search that chose it has it, write search.json, and return the folder."""
    shutil.copytree(bundle, folder / "bundle")
    fields = search_fields(**{"bundle": load_manifest(bundle)["digest"], **changes})
    (folder / "search.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def search_request(output: Path, photos: Path | None = None, **changes: Any) -> SearchRequest:
    """Return the request of a search that ends by itself: few schedules, the same ones for all, so that their exports are shared."""
    build = BuildRequest("lvvit_nano", None, engine="onnxruntime", num_classes=2)
    data = str(photos / "flat") if photos else None
    fields = {"latency": 1.0, "data": data, "seconds": 20.0, "finalists": 1, "most_stages": 2} | changes
    return SearchRequest(**{"build": build, "output": output, **fields})
