"""What a bundle's engine gives for image files, written into one file: features, tokens, logits, with the path of each row."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from sit_deploy import limits
from sit_deploy.calls import takes_options
from sit_deploy.data.damaged import USUAL_LIMIT, DamagedImage, DamagedImages
from sit_deploy.errors import GateError, InputError
from sit_deploy.files import check_output, whole_file
from sit_deploy.outputs import in_order, listing
from sit_deploy.schema import convert_fields, require_type
from sit_deploy.text import file_size, shown

if TYPE_CHECKING:
    import numpy as np

    from sit_deploy.array_files import Shapes, Write
    from sit_deploy.bundle import Bundle

PATHS = "paths"  # of the images, in the order of the rows; no output is called so
_ARCHIVE, _SINGLE = ".npz", ".npy"


@dataclass(frozen=True)
class EmbedRequest:
    """What to compute and where to write it; the fields are the options of `sit-deploy embed`.

    Attributes:
        bundle: its folder.
        images: files, and folders of which all images below are taken.
        output: an .npz file of the paths and every output, or an .npy file of one output alone.
        outputs: which of the bundle's to write; all by default.
        engine: "onnxruntime" runs the graph of a TensorRT bundle on this CPU.
        force: replace a file that is there.
        max_damaged: images that may be unreadable; they are left out.
    """

    bundle: Path
    images: tuple[Path, ...]
    output: Path
    outputs: tuple[str, ...] | None = None
    engine: str | None = None
    threads: int | None = None
    device: str | None = None
    force: bool = False
    max_damaged: int = USUAL_LIMIT

    def __post_init__(self) -> None:
        if isinstance(self.images, str | os.PathLike):
            object.__setattr__(self, "images", (self.images,))
        convert_fields(self)
        if self.outputs is not None:
            object.__setattr__(self, "outputs", in_order(self.outputs))

    def check(self) -> None:
        """Refuse what can be refused at once.

        Raises:
            InputError: a file that cannot be written, or of another kind; a number out of range.
        """
        if self.output.suffix.lower() not in (_ARCHIVE, _SINGLE):
            raise InputError(
                f"output {self.output} must end in .npz (paths and outputs) or .npy (one output); pass for example -o features.npz"
            )
        check_output(self.output, self.force)
        limits.check_ranges(self, threads=(1, limits.THREADS), max_damaged=(0, limits.IMAGES))

    def names(self, bundle: Bundle) -> tuple[str, ...]:
        """Return the outputs to write, in order.

        Raises:
            InputError: the bundle does not give one, or there are several for an .npy file.
        """
        given = [output.name for output in bundle.outputs]
        names = self.outputs or tuple(given)
        if missing := [name for name in names if name not in given]:
            raise InputError(
                f"{bundle.path} gives {listing(given)} and no {missing[0]}; leave it out, or build it with --outputs "
                f"{','.join(in_order([*given, *missing]))}"
            )
        if self.output.suffix.lower() == _SINGLE and len(names) > 1:
            raise InputError(
                f"an .npy file holds one array, and {listing(names)} are {len(names)}; pass --outputs {names[0]}, or write an .npz file"
            )
        return names


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        file: where it is.
        outputs: shape of each array, (images, ...), by name.
        images: how many have a row.
        engine: the kind that ran.
        seconds: from the first image to the last.
        paths: of the images in the order of the rows, where the file has no room for them (.npy), else None.
        damaged: images that could not be read; they have no row.
    """

    file: Path
    outputs: dict[str, tuple[int, ...]]
    images: int
    engine: str
    seconds: float
    paths: tuple[Path, ...] | None = None
    damaged: tuple[DamagedImage, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "file": str(self.file),
            "bytes": self.file.stat().st_size,
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "images": self.images,
            "engine": self.engine,
            "seconds": self.seconds,
            "paths": None if self.paths is None else [str(path) for path in self.paths],
            "damaged": [one.to_dict() for one in self.damaged],
        }


@takes_options(EmbedRequest, progress=lambda shown: shown.step, tell=lambda shown: shown.note)
def embed(
    request: EmbedRequest, progress: Progress | None = None, tell: Callable[[str], None] | None = None
) -> Embedded:
    """Run a bundle on image files and write what it gives, a batch at a time: neither images nor outputs are held in memory.

    The file is moved into place whole. An .npz has `paths`, text (n,), and each output under its name, float32 (n, ...). An image that
    cannot be read has no row and no path.

    Args:
        request: what, and where to.
        progress: called with a step, how much of it is done, and of how much.
        tell: called with what a user should know before the work: what was passed over, and how large the file will be.

    Raises:
        InputError: a path without images, more images that cannot be read than may be, or all of them, outputs that the bundle does not give, or a file that
            cannot be written or would not fit on its disk.
        engines.EngineError: the engine is missing, or does not run here.
        GateError: an engine that gives NaN or infinity.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.data.batches import batches
    from sit_deploy.data.ignored_orientation import ignored_orientation_note
    from sit_deploy.data.image_files import find_images
    from sit_deploy.inference import load

    require_type(request, EmbedRequest, "an embedding")
    request.check()
    found = find_images(request.images)
    bundle = load_bundle(request.bundle)
    names, preprocessing = request.names(bundle), bundle.preprocessing()
    shapes = {one.name: (len(found.images), *one.shape) for one in bundle.outputs if one.name in names}
    for note in (
        found.note,
        ignored_orientation_note(found.images, preprocessing, "build it again with"),
        _check_space(request.output, shapes, found.images),
    ):
        if note and tell:
            tell(note)
    single = request.output.suffix.lower() == _SINGLE
    damaged, embedded = DamagedImages(request.max_damaged), list[Path]()
    with (
        load(bundle, request.engine, threads=request.threads, device=request.device) as classifier,
        whole_file(request.output) as temporary,
        _writer(temporary, shapes, None if single else embedded) as write,
    ):
        started = time.perf_counter()
        for images, sources in batches(found.images, preprocessing, bundle.batch_size, damaged=damaged):
            outputs = classifier.outputs(images)
            rows = {name: outputs[name] for name in names}
            _require_finite(rows, sources)
            write(rows)
            embedded += sources
            if progress:
                progress("embedding images", len(embedded) + len(damaged.found), len(found.images))
        damaged.require_any(len(embedded), len(found.images))
        seconds = time.perf_counter() - started
    kind, paths = request.engine or bundle.manifest.engine.kind, tuple(embedded) if single else None
    written = {name: (len(embedded), *shape[1:]) for name, shape in shapes.items()}
    return Embedded(request.output, written, len(embedded), kind, seconds, paths, damaged.found)


@contextlib.contextmanager
def _writer(path: Path, shapes: Shapes, paths: Sequence[Path] | None) -> Iterator[Write]:
    """Give what takes the rows of a file: an archive with the paths that are there when all is written, or one array without."""
    import numpy as np

    from sit_deploy.array_files import archive, single

    if paths is None:
        ((name, shape),) = shapes.items()
        with single(path, name, shape) as write:
            yield write
    else:
        with archive(path, shapes, lambda: {PATHS: np.array([str(one) for one in paths])}) as write:
            yield write


def _check_space(output: Path, shapes: Shapes, paths: Sequence[Path]) -> str:
    """Return in a sentence how large the file will be.

    Raises:
        InputError: it does not fit on its disk.
    """
    from sit_deploy.array_files import size_of, space_for_archive

    names = (
        4 * len(paths) * max(len(str(path)) for path in paths)
    )  # NumPy's text: 4 bytes a character, all as long
    single = output.suffix.lower() == _SINGLE
    needed = sum(map(size_of, shapes.values())) if single else space_for_archive(shapes, names)
    folder = Path(os.path.realpath(output)).parent
    free = shutil.disk_usage(folder).free
    sizes = ", ".join(f"{name} {file_size(size_of(shape))}" for name, shape in shapes.items())
    if needed > free:
        least = min(shapes, key=lambda name: size_of(shapes[name]))
        fits = len(shapes) > 1 and size_of(shapes[least]) + names < free
        remedy = f"pass --outputs {least}" if fits else "take fewer images"
        raise InputError(
            f"output {output} needs {file_size(needed)} while it is written ({sizes}), and {file_size(free)} are free in {folder}; {remedy}, "
            "or choose a place with more room with -o"
        )
    whole = sum(map(size_of, shapes.values())) + (0 if single else names)
    return f"{len(paths)} image{'s' * (len(paths) != 1)}: {sizes}; the file will have {file_size(whole)}"


def _require_finite(rows: dict[str, np.ndarray], sources: Sequence[Any]) -> None:
    """Refuse an engine that gives NaN or infinity, and name the first image."""
    import numpy as np

    for name, values in rows.items():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise GateError(
                f"the engine gives NaN or infinite {name} for {shown(sources[int(bad.argmax())])}; check it with sit-deploy validate"
            )
