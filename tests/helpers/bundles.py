"""Bundles that were changed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sit_deploy.bundle import write_manifest


def load_manifest(bundle: Path) -> dict[str, Any]:
    """Return what a bundle's manifest says, as it stands."""
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def seal_again(bundle: Path, manifest: dict[str, Any] | None = None) -> None:
    """Let the manifest say what is in the folder now, and of all else what `manifest` says, or the one that is there."""
    fields = load_manifest(bundle) if manifest is None else manifest
    write_manifest(bundle, {k: v for k, v in fields.items() if k not in ("schema", "files", "digest")})
