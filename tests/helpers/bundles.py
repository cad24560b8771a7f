"""What bundles say, and bundles that were changed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sit_deploy.bundle import Bundle, write_manifest
from sit_deploy.preprocessing import Preprocessing

FILES = ("model.onnx", "engine.onnx", "golden.npz", "report.json", "report.html")
FIELDS: dict[str, Any] = {
    "model": {
        "name": "sit_nano",
        "image_size": [4, 4],
        "num_classes": 3,
        "tokens": [1],
        "parameters": 9,
        "macs": 99,
    },
    "classes": None,
    "preprocessing": Preprocessing.for_model(4).to_dict(),
    "precision": "fp32",
    "batch": {"size": 2},
    "opset": 20,
    "engine": {"kind": "onnxruntime", "file": "engine.onnx", "version": "1", "target": "cpu"},
    "weights": {"source": "random"},
}


def make_bundle(path: Path, **fields: Any) -> Path:
    """Write a bundle whose files are a few bytes each."""
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_text(f"this is {name}")
    np.savez(path / "golden.npz", images=np.ones((2, 3, 4, 4), "f4"), logits=np.ones((2, 3), "f4"))
    write_manifest(path, {**FIELDS, **fields})
    return path


def load_manifest(bundle: Path) -> dict[str, Any]:
    """Return what a bundle's manifest says, as it stands."""
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def seal_again(bundle: Path, manifest: dict[str, Any] | None = None) -> None:
    """Let the manifest say what is in the folder now, and of all else what `manifest` says, or the one that is there."""
    fields = load_manifest(bundle) if manifest is None else manifest
    write_manifest(bundle, {k: v for k, v in fields.items() if k not in ("schema", "files", "digest")})


def report_of(bundle: Bundle | Path) -> dict[str, Any]:
    """Return what the report of a bundle's build says, as JSON values."""
    folder = bundle if isinstance(bundle, Path) else bundle.path
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))
