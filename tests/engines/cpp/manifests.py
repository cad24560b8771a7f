"""Changing a bundle as someone would who can compute hashes: what then refuses it looked at the numbers themselves."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sit_deploy.files import sha256
from sit_deploy.manifest import digest


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> Path:
    """Change a manifest; its files' hashes and its own digest are made right."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, facts in manifest["files"].items():
        if (folder / name).is_file():
            facts.update(sha256=sha256(folder / name), bytes=(folder / name).stat().st_size)
    change(manifest)
    manifest["digest"] = digest(manifest)
    path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder


def npy(shape: object, data: bytes, dtype: str = "<f4", order: str = "False") -> bytes:
    """An array file whose header says anything at all."""
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
