"""What to search for: the options of `sit-deploy search` as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from sit_deploy import limits
from sit_deploy.data.image_files import subfolders
from sit_deploy.data.source import is_named
from sit_deploy.errors import InputError
from sit_deploy.methods import TRAINING_FREE, TRANSFORM
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.schema import convert_fields
from sit_deploy.search.schedule import MOST_STAGES

AUTO = "auto"
SECONDS = 300.0
FINALISTS = 3  # that are built and timed
_MOST_FINALISTS = 20
_MOST_STAGES = 8
_FASTEST = 1000  # times as fast as the unslimmed model


@dataclass(frozen=True)
class SearchRequest:
    """What to search for.

    Attributes:
        build: the unslimmed model, and how its engine is to be built; its output is not used.
        output: folder of what is found.
        latency: milliseconds a batch, that the engine is to keep; or
        speedup: times as fast as the unslimmed model on the same engine, in the same precision; with several precisions, in float32.
        precisions: of the engines, of which the best is taken.
        data: images, labelled or not: a folder, or a data set as `sit-deploy validate --data` takes them. Synthetic ones without it.
        unlabelled: take a folder of folders as images without labels.
        max_accuracy_drop: points of top-1 that the engine may lose of the unslimmed model's, before any training.
        method: that slims without training.
        seconds: of the search, without the last builds.
        finalists: schedules that are built and timed.
        most_stages: of a schedule.
        tables: latency tables of engines that do not run here, or were measured before.
        seed: of what is drawn.
        force: replace a search that is there.
    """

    build: BuildRequest
    output: Path
    latency: float | None = None
    speedup: float | None = None
    precisions: tuple[str, ...] = ()
    data: str | None = None
    unlabelled: bool = False
    max_accuracy_drop: float | None = None
    method: str = TRANSFORM
    seconds: float = SECONDS
    finalists: int = FINALISTS
    most_stages: int = MOST_STAGES
    tables: tuple[Path, ...] = ()
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        convert_fields(self)
        _check(self)

    @property
    def labelled(self) -> bool:
        """Whether the images are taken to have labels: those of a data set, and of a folder of folders."""
        if self.data is None or self.unlabelled:
            return False
        path = Path(self.data)
        return bool(subfolders(path)) if path.is_dir() else is_named(self.data)

    @property
    def asked(self) -> str:
        """The limit in words."""
        if self.latency is not None:
            return f"{self.latency:g} ms"
        of = f" in {self.basis}" if len(self.precisions) > 1 else ""
        return f"{self.speedup:g}x the speed of the unslimmed model{of}"

    @property
    def basis(self) -> str:
        """The precision of the unslimmed model that `speedup` is over."""
        return "fp32" if "fp32" in self.precisions else self.precisions[0]

    def of_model(self) -> BuildRequest:
        """Return the request for the unslimmed model, with the images to compare on."""
        folder = Path(self.data) if self.data and Path(self.data).is_dir() else None
        build = replace(self.build, calib_data=self.build.calib_data or folder)
        return replace(build, val_data=self.data) if self.labelled else build

    @property
    def unlabelled_folder(self) -> Path | None:
        """The folder of images, where they have no labels."""
        return Path(self.data) if self.data and not self.labelled else None


def in_precision(build: BuildRequest, precision: str) -> BuildRequest:
    """Return the request that builds an engine of a precision; of 8 bits with fixed groups of layers.

    Layers chosen by the clock would be others for every schedule, and no table could foretell their time.
    """
    if precision not in EIGHT_BITS:
        return build.in_high_precision(precision)
    return replace(build, precision=precision, quantize=build.quantize or ("default",))


def _check(request: SearchRequest) -> None:
    """Refuse what contradicts itself, or is out of range.

    Raises:
        InputError: names the option.
    """
    if (request.latency is None) == (request.speedup is None):
        raise InputError(
            "say how fast it is to be: pass --latency MS or --speedup X"
            + (", not both" if request.latency is not None else "")
        )
    if request.latency is not None and not 0 < request.latency <= limits.REAL:
        raise InputError(
            f"--latency must be above 0 ms, got {request.latency:g}; pass for example --latency 5"
        )
    if request.speedup is not None and not 1 < request.speedup <= _FASTEST:
        if math.isnan(request.speedup) or request.speedup > 1:
            raise InputError(f"--speedup must be at most {_FASTEST}, got {request.speedup:g}")
        raise InputError(
            f"--speedup {request.speedup:g} asks for nothing: the unslimmed model is 1x as fast as itself; pass for example --speedup 1.7"
        )
    if request.method not in TRAINING_FREE:
        raise InputError(
            f"--method {request.method} is not offered: it needs training before anything can be told of it; choose "
            f"{' or '.join(TRAINING_FREE)}"
        )
    for name in ("data_dir", "split", "image_key", "label_key"):
        if getattr(request.build, name) is not None and not request.labelled:
            raise InputError(
                f"--{name.replace('_', '-')} says which labelled images to take, and there are none; pass --data with some, or leave it out"
            )
    if request.max_accuracy_drop is not None:
        if not 0 <= request.max_accuracy_drop <= 100:
            raise InputError(
                f"--max-accuracy-drop is in points of top-1, 0 to 100, got {request.max_accuracy_drop:g}"
            )
        if not request.labelled:
            raise InputError(
                "--max-accuracy-drop needs images with labels; pass --data with a folder of a folder a class"
            )
    limits.check_ranges(
        request,
        seconds=(1, limits.SECONDS),
        finalists=(1, _MOST_FINALISTS),
        seed=(0, limits.SEED),
    )
    if not 2 <= request.most_stages <= _MOST_STAGES:
        raise InputError(
            f"--max-stages must be 2 to {_MOST_STAGES}, got {request.most_stages}; a schedule of one stage slims nothing"
        )
    build = request.build
    if build.stages and len(build.stages) > 1:
        raise InputError(
            "--stages is what is searched for; leave it out, and take the weights of the unslimmed model"
        )
