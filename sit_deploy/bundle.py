"""The bundle: one folder that says what an engine is, where it came from, and that nothing in it was changed.

    manifest.json · model.onnx · engine.plan or engine.onnx · golden.npz · report.json · report.html

It is written beside its place and moved there whole; loading checks every hash before anything is deserialised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sit_deploy.errors import InputError

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDEN = "golden.npz"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def check_destination(path: Path, force: bool) -> None:
    """Refuse, before any work is done, a folder that a bundle could not be moved to.

    Raises:
        InputError: exists already, is no folder, or its parent cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"output {path} is not a folder; choose another with -o")
    if path.is_dir() and any(path.iterdir()):
        if not is_bundle(path):
            raise InputError(
                f"output folder {path} has other files in it; choose an empty or new one with -o"
            )
        if not force:
            raise InputError(
                f"output folder {path} is already a bundle; pass --force to replace it, or choose another -o"
            )
    parent = next(p for p in (path.absolute().parent, *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"output folder {path} cannot be written ({parent} is not writable); choose another with -o"
        )


@contextlib.contextmanager
def staging(destination: Path, force: bool) -> Iterator[Path]:
    """Give an empty folder beside `destination` and move it there whole when the block ends well.

    Whatever ends the block otherwise, Ctrl-C included, the folder is removed and `destination` is as it was.

    Raises:
        InputError: `destination` is taken or cannot be written.
    """
    check_destination(destination, force)
    destination = destination.absolute()
    made = [p for p in destination.parents if not p.exists()]
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent))
    folder.chmod(0o755)
    try:
        yield folder
        _swap(folder, destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _swap(folder: Path, destination: Path) -> None:
    """Put `folder` in the place of `destination`, which may be absent, empty or a bundle."""
    if not destination.exists():
        folder.rename(destination)
        return
    old = folder.with_name(folder.name + ".old")
    destination.rename(old)
    try:
        folder.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the hash and size of every other file in `folder`."""
    files = {
        p.name: {"sha256": sha256(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
        if p.name != MANIFEST
    }
    text = json.dumps(
        {"schema": SCHEMA, **manifest, "files": files}, indent=2, ensure_ascii=False, allow_nan=False
    )
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are as its manifest says. path: its folder. manifest: the parsed manifest.json."""

    path: Path
    manifest: dict[str, Any]

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def engine_path(self) -> Path:
        return self.path / self.manifest["engine"]["file"]

    @property
    def classes(self) -> list[str]:
        """Class names in label order; their numbers where the bundle has no names."""
        return self.manifest["classes"] or [str(i) for i in range(self.manifest["model"]["num_classes"])]

    @property
    def batch_size(self) -> int:
        """The batch that the engine takes, or is tuned for where it takes several."""
        batch = self.manifest["batch"]
        return batch["size"] if "size" in batch else batch["opt"]

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        batch = self.manifest["batch"]
        return (batch["size"],) * 2 if "size" in batch else (batch["min"], batch["max"])

    def preprocessing(self) -> Any:
        """Return the `sit_deploy.data.Preprocessing` of the manifest."""
        from sit_deploy.data import Preprocessing

        return Preprocessing.from_dict(self.manifest["preprocessing"])

    def golden(self) -> tuple[Any, Any]:
        """Return images float32 (n, 3, H, W), already preprocessed, and reference logits float32 (n, classes)."""
        import numpy as np

        with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            return arrays["images"], arrays["logits"]


_REQUIRED = ("model", "classes", "preprocessing", "precision", "batch", "engine", "weights", "files")


def load_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify it.

    Raises:
        InputError: not a bundle, of a newer schema, or with a file missing, added or changed.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"{path} is not a bundle: no such folder; make one with `sit-deploy build -o {path}`"
        )
    if not is_bundle(path):
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST}; make one with `sit-deploy build`")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path / MANIFEST} cannot be read ({error}); build the bundle again") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise InputError(f"{path / MANIFEST} is not a manifest of sit-deploy; build the bundle again")
    if schema > SCHEMA:
        raise InputError(
            f"{path} is a bundle of schema {schema}, newer than the {SCHEMA} known here; upgrade sit-deploy"
        )
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise InputError(f"{path / MANIFEST} lacks {', '.join(missing)}; build the bundle again")
    for name, facts in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"bundle {path} lacks its file {name}; copy it again or rebuild it")
        if sha256(file) != facts["sha256"]:
            raise InputError(
                f"bundle {path} was changed: {name} does not match its hash; copy it again or rebuild it"
            )
    for name in (MODEL, GOLDEN, manifest["engine"]["file"]):
        if name not in manifest["files"]:
            raise InputError(f"bundle {path} lists no hash for {name}; copy it again or rebuild it")
    return Bundle(path, manifest)
