"""The bundle: one folder that says what an engine is, where it came from, and that nothing in it was changed.

    manifest.json · model.onnx · engine.plan or engine.onnx · golden.npz · report.json · report.html

It is written beside its place and moved there whole; loading checks every hash before anything is deserialised. The
manifest carries a digest of itself: SHA-256 of its other fields as JSON with sorted keys, no spaces, in UTF-8.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.files import place, recover, scratch, sha256
from sit_deploy.manifest import MANIFEST, SCHEMA, Manifest, digest, parse_manifest, write_manifest
from sit_deploy.outputs import listing
from sit_deploy.schema import read_json

if TYPE_CHECKING:
    import numpy as np

    from engines import EngineOrigin
    from sit_deploy.outputs import Output
    from sit_deploy.preprocessing import Preprocessing

__all__ = [
    "CALIBRATION",
    "GOLDEN",
    "MANIFEST",
    "MODEL",
    "SCHEMA",
    "TIMINGS",
    "Bundle",
    "check_destination",
    "digest",  # of manifests, for programs that seal a bundle again: they look for it here
    "is_bundle",
    "load_bundle",
    "staging",
    "write_manifest",
]

MODEL = "model.onnx"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
TIMINGS = "timings.json"  # of plans that were measured (`sit_deploy.tune.cache`)


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle; nothing in it is checked."""
    return (path / MANIFEST).is_file()


def check_destination(path: Path, force: bool) -> None:
    """Refuse, before any work is done, a folder that a bundle could not be moved to.

    Raises:
        InputError: taken, in use, no folder, or its parent cannot be written.
    """
    recover(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a symbolic link" if path.is_symlink() else "not a folder"
        raise InputError(f"output {path} is {kind}; choose another with -o")
    if path.is_dir():
        # moved into place means: this very folder is replaced by another
        real = path.resolve()
        if real.is_mount() or Path.cwd().is_relative_to(real):
            what = "a mount point" if real.is_mount() else "the folder you are in"
            raise InputError(f"output folder {path} is {what}; choose one inside it, as -o {path / 'bundle'}")
        _check_replaceable(path, force)
    parent = next(p for p in (path.absolute().parent, *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "not writable" if parent.is_dir() else "not a folder"
        raise InputError(
            f"output folder {path} cannot be written ({parent} is {what}); choose another with -o"
        )


def _check_replaceable(path: Path, force: bool) -> None:
    """Only an empty folder may be replaced and, by force, one that holds nothing but a bundle's files."""
    found = {p.name for p in path.iterdir()}
    if not found:
        return
    try:
        listed = read_json(path / MANIFEST, "")["files"].keys()
    except (InputError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"output folder {path} has other files in it; choose an empty or new one with -o"
        ) from None
    if others := sorted(found - listed - {MANIFEST}):
        raise InputError(
            f"output folder {path} has files in it that are no bundle's ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}); move them away, or choose another -o"
        )
    if not force:
        raise InputError(
            f"output folder {path} is already a bundle; pass --force to replace it, or choose another -o"
        )


@contextlib.contextmanager
def staging(destination: Path, force: bool) -> Iterator[Path]:
    """Give an empty folder beside `destination` and move it there whole when the block ends well.

    Whatever ends the block otherwise, Ctrl-C included, the folder is removed and `destination` is as it was.

    Raises:
        InputError: `destination` is taken or cannot be written, before the block or by its end.
    """
    check_destination(destination, force)
    with scratch(destination) as folder:
        yield folder
        check_destination(destination, force)  # someone may have put something there meanwhile
        place(folder, destination, replace=force)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are as its manifest says.

    Attributes:
        path: its folder.
    """

    path: Path
    manifest: Manifest

    def __fspath__(self) -> str:
        """Its folder: a bundle stands wherever a path of one does."""
        return str(self.path)

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def engine_path(self) -> Path:
        return self.path / self.manifest.engine.file

    @property
    def origin(self) -> EngineOrigin:
        """How the engine was built: one that is stale here is refused by it."""
        return self.manifest.origin

    @property
    def classes(self) -> list[str]:
        """Class names in label order; their numbers where the bundle has no names."""
        return self.manifest.class_names

    @property
    def batch_size(self) -> int:
        """The batch that the engine takes, or is tuned for where it takes several."""
        return self.manifest.batch.best

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        return self.manifest.batch.range

    @property
    def threads(self) -> int | None:
        """CPU threads that it was built for (`build --threads`); None leaves the choice to the runtime."""
        return self.manifest.engine.threads

    def preprocessing(self) -> Preprocessing:
        """Return how images are prepared for the engine."""
        from sit_deploy.preprocessing import Preprocessing

        return Preprocessing.from_dict(self.manifest.preprocessing)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the engine gives, in order."""
        return self.manifest.given

    def require_classes(self, what: str, instead: str) -> None:
        """Refuse what needs logits where the engine gives none.

        Args:
            what: needs them, for the start of the message.
            instead: what a bundle without them is for, a command line.

        Raises:
            InputError: says what it gives instead.
        """
        if not self.manifest.has_logits:
            names = listing([output.name for output in self.outputs])
            raise InputError(
                f"{what} needs classes, and {self.path} gives {names} and no logits; {instead}, or build it with --outputs {','.join(('logits', *(output.name for output in self.outputs)))}"
            )

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the golden images and the reference's first output of them: the logits (n, classes), where there are any.

        The images are as the engine takes them, float32 (n, 3, H, W) or uint8 (n, H, W, 3).

        Raises:
            InputError: they do not fit the manifest; `load_bundle` has looked already.
        """
        images, values = self.golden_outputs()
        return images, values[self.outputs[0].name]

    def golden_outputs(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the golden images and every output of them by name, float32 (n, ...); errors as of `golden`."""
        from sit_deploy.golden import read_golden

        return read_golden(self.path / GOLDEN, self.preprocessing(), self.outputs)


def load_bundle(path: str | Path) -> Bundle:
    """Open a bundle and verify it: hashes, then every field of its manifest, then that golden.npz fits it.

    Raises:
        InputError: not a bundle, of a newer schema, with its manifest or a file of it missing or changed, or with a field
            or golden outputs that cannot be right.
    """
    path = _folder(path)
    where, again = path / MANIFEST, "build the bundle again"
    from sit_deploy.models.config import ONE_OUTPUT

    manifest = parse_manifest(read_json(where, again), where, again)
    if manifest.model.num_classes == 1 and manifest.has_logits:  # as earlier versions built
        raise InputError(
            f"bundle {path} has one output: {ONE_OUTPUT}; build it again from its checkpoint with --num-classes 2"
        )
    for name in (MODEL, GOLDEN):
        if name not in manifest.files:
            raise InputError(f"bundle {path} lists no hash for {name}; copy it again or rebuild it")
    for name, listed in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"bundle {path} lacks its file {name}; copy it again or rebuild it")
        if file.stat().st_size != listed.bytes or sha256(file) != listed.sha256:
            raise InputError(
                f"bundle {path} was changed: {name} does not match its hash; copy it again or rebuild it"
            )
    bundle = Bundle(path, manifest)
    bundle.golden_outputs()
    return bundle


def _folder(path: Any) -> Path:
    """Return the folder of a bundle.

    Raises:
        InputError: no path, or no bundle there.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InputError(
            f"a bundle is opened by the path of its folder, got {path!r}; pass a string or a Path"
        )
    path = Path(path)
    recover(path)
    if "\0" not in str(path) and path.exists() and not path.is_dir():
        raise InputError(
            f"{path} is not a bundle: it is a file, and a bundle is a folder; pass the folder that `build` wrote"
        )
    if "\0" in str(path) or not path.is_dir():
        from sit_deploy.models.hub import is_place

        how = f"--model {path}" if is_place(path) else f"-o {path}"
        raise InputError(f"{path} is not a bundle: no such folder; make one with `sit-deploy build {how}`")
    if not is_bundle(path):
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST}; make one with `sit-deploy build`")
    return path
