"""What a bundle's manifest.json must be: every field that something reads, with its type, its bounds, and what must fit what.

Fields that are not named here are let through: a newer version may write them.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

import engines
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.precisions import TOLERANCE
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.schema import check

Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=limits.INTEGER)]
Pixels = Annotated[int, Meta(ge=1, le=limits.PIXELS)]
BatchSize = Annotated[int, Meta(ge=1, le=limits.BATCH)]
Blocks = Annotated[list[Annotated[int, Meta(ge=1, le=limits.BLOCKS)]], Meta(min_length=1)]
Tokens = Annotated[list[Annotated[int, Meta(ge=1, le=limits.PIXELS**2)]], Meta(min_length=1)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Ratio = Annotated[float, Meta(gt=0, le=1)]


class Model(Struct):
    """What is in the engine."""

    name: Text
    image_size: tuple[Pixels, Pixels]
    num_classes: Annotated[int, Meta(ge=1, le=limits.CLASSES)]
    tokens: Tokens
    parameters: Count
    macs: Count
    stages: Blocks | None = None
    keeping_ratio: Ratio | None = None
    dist_token: bool = False
    published_top1: Percent | None = None
    config: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.stages is not None and len(self.stages) != len(self.tokens):
            raise ValueError(f"tokens must be one for each of the {len(self.stages)} stages")


class Batch(Struct):
    """Either `size`, or all of the others."""

    size: BatchSize | None = None
    min: BatchSize | None = None
    opt: BatchSize | None = None
    max: BatchSize | None = None

    def __post_init__(self) -> None:
        several = (self.min, self.opt, self.max)
        if self.size is not None and several == (None, None, None):
            return
        if self.size is not None or None in several or not self.min <= self.opt <= self.max:  # type: ignore[operator]
            raise ValueError("it must have size, or min <= opt <= max")


class Details(Struct, frozen=True):
    """What of an engine's own facts something reads."""

    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: str | None = None


class EngineFacts(Struct):
    """How the engine was built."""

    kind: Literal[engines.KINDS]
    version: Text
    file: Text
    target: Text
    details: Details = Details()
    why: str = ""
    build_seconds: Annotated[float, Meta(ge=0)] = 0.0


class Weights(Struct):
    """Where the weights came from."""

    source: Text
    sha256: Sha256 | None = None
    entry: str | None = None
    ema: bool = True
    top1: Percent | None = None
    seed: int | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.source != "random" and self.sha256 is None:
            raise ValueError("it has no sha256, and only random weights have none")


class File(Struct):
    """A file of the bundle."""

    sha256: Sha256
    bytes: Count


class Manifest(Struct):
    """The whole; `digest` and `schema` are checked before anything else is."""

    model: Model
    classes: Annotated[list[str], Meta(min_length=1)] | None
    preprocessing: dict[str, Any]
    precision: Literal[tuple(TOLERANCE)]
    batch: Batch
    engine: EngineFacts
    weights: Weights
    files: dict[str, File]
    opset: Annotated[int, Meta(ge=1, le=100)]
    preprocessing_source: dict[str, str] = {}
    calibration: dict[str, Any] | None = None
    compared_on: str | None = None
    versions: dict[str, str | None] = {}
    command: Text = "sit-deploy build"

    def __post_init__(self) -> None:
        names, count = self.classes, self.model.num_classes
        if names is not None and len(names) != count:
            raise ValueError(f"classes has {len(names)} names for the {count} classes of model.num_classes")
        for name in self.files:
            if name != PurePath(name).name or name in ("", ".", "..") or "\0" in name:
                raise ValueError(f"files has {name!r}, which is no plain file name")
        if self.engine.file not in self.files:
            raise ValueError(f"files lists no hash for {self.engine.file!r}, the file of engine")


def check_manifest(fields: Any, where: object, remedy: str) -> Preprocessing:
    """Return the preprocessing of a manifest whose fields are as they should be.

    Args:
        fields: the parsed manifest.json. where: what to call it. remedy: what to do about a wrong one.
    Raises:
        InputError: names the first field that is not.
    """
    manifest = check(fields, Manifest, where, remedy)
    try:
        preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    except InputError as error:
        raise InputError(f"{where}: {error}; {remedy}") from None
    if preprocessing.size != manifest.model.image_size:
        taken, made = ("x".join(map(str, size)) for size in (manifest.model.image_size, preprocessing.size))
        raise InputError(
            f"{where}: preprocessing gives {made} pixels, and model.image_size is {taken}; {remedy}"
        )
    return preprocessing
