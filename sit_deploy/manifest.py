"""The manifest of a bundle (manifest.json) as a typed value: every field with its type, its bounds, and what must fit what.

`BuildFacts` is what a build knows; `Manifest` is that with the hashes of the files and its own digest, as it is read back.
Fields that are not named here are let through and kept (`Manifest.to_dict`): a newer version may write them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

import engines
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.hashes import digest, sha256
from sit_deploy.methods import TSM
from sit_deploy.outputs import LOGITS, OUTPUTS, Output
from sit_deploy.precisions import TOLERANCE
from sit_deploy.schema import check

SCHEMA = 2  # the newest that is read
# what is written: of logits alone as ever, so that everything that reads bundles reads them; 2 has other outputs
_LOGITS_ALONE, _NAMED_OUTPUTS = 1, 2
MANIFEST = "manifest.json"
RANDOM = "random"  # the source of weights that are nobody's

Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0, le=limits.INTEGER)]
Pixels = Annotated[int, Meta(ge=1, le=limits.PIXELS)]
BatchSize = Annotated[int, Meta(ge=1, le=limits.BATCH)]
Blocks = Annotated[list[Annotated[int, Meta(ge=1, le=limits.BLOCKS)]], Meta(min_length=1)]
Tokens = Annotated[list[Annotated[int, Meta(ge=1, le=limits.PIXELS**2)]], Meta(min_length=1)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Ratio = Annotated[float, Meta(gt=0, le=1)]


class _Fields(Struct, frozen=True, kw_only=True):
    """Fields of manifest.json."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {
            name: value.to_dict() if isinstance(value, _Fields) else value
            for name, value in asdict(self).items()
        }


class Model(_Fields, frozen=True, kw_only=True):
    """What is in the engine.

    Attributes:
        keeping_ratio: None where `tokens` alone say how many each stage keeps.
        method: how tokens are merged between stages (`sit_deploy.methods`); None for TSMs, as older versions had nothing else.
    """

    name: Text
    stages: Blocks | None = None
    keeping_ratio: Ratio | None = None
    method: Literal["transform", "merge"] | None = None
    image_size: tuple[Pixels, Pixels]
    num_classes: Annotated[int, Meta(ge=0, le=limits.CLASSES)]
    dist_token: bool = False
    tokens: Tokens
    parameters: Count
    macs: Count
    config: dict[str, Any] = {}
    published_top1: Percent | None = None

    def __post_init__(self) -> None:
        if self.stages is not None and len(self.stages) != len(self.tokens):
            raise ValueError(f"tokens must be one for each of the {len(self.stages)} stages")

    @property
    def kept(self) -> tuple[int, ...] | None:
        """`tokens`, where no ratio gives them."""
        return tuple(self.tokens) if self.stages and self.keeping_ratio is None else None

    @property
    def slims_by(self) -> str | None:
        """The method that merges its tokens, TSMs too; None for a model that slims nothing."""
        return (self.method or TSM) if len(self.tokens) > 1 else None

    @property
    def slimming(self) -> dict[str, Any] | None:
        """Blocks and patch tokens of each stage and the method, as JSON has them; None for a model that slims nothing."""
        if (method := self.slims_by) is None:
            return None
        return {"method": method, "stages": self.stages, "tokens": self.tokens}


class OutputFacts(_Fields, frozen=True, kw_only=True):
    """An output of the engine, float32 (images, *shape).

    Attributes:
        shape: of one image: (classes,), (dim,) or (patches, dim).
        meaning: for people.
    """

    name: Literal[OUTPUTS]
    dtype: Literal["float32"]
    shape: Annotated[list[Annotated[int, Meta(ge=1, le=limits.PIXELS**2)]], Meta(min_length=1, max_length=2)]
    meaning: str = ""

    @classmethod
    def of(cls, output: Output) -> OutputFacts:
        return cls(**output.to_dict())


class Batch(_Fields, frozen=True, kw_only=True):
    """The batches that the engine takes: either `size`, or all of the others."""

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

    @property
    def is_dynamic(self) -> bool:
        """Whether the engine takes several sizes, and its graph any."""
        return self.size is None

    @property
    def best(self) -> int:
        """The batch that the engine takes, or is tuned for where it takes several."""
        size = self.size or self.opt
        assert size is not None
        return size

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        smallest, largest = self.size or self.min, self.size or self.max
        assert smallest is not None and largest is not None
        return smallest, largest

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if value is not None}


class EngineFacts(_Fields, frozen=True, kw_only=True):
    """How the engine was built.

    Attributes:
        details: the runtime's own facts, those of `_Details` and others.
        threads: CPU threads that it was tried with and is to run with; None where nobody said.
    """

    kind: Literal[engines.KINDS]
    why: str = ""
    version: Text
    file: Text
    target: Text
    build_seconds: Annotated[float, Meta(ge=0)] = 0.0
    details: dict[str, Any] = {}
    threads: Annotated[int, Meta(ge=1, le=limits.THREADS)] | None = None

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        if self.threads is None:  # as bundles of before
            del fields["threads"]
        return fields

    @property
    def has_weights(self) -> bool:
        """Whether the engine's own file holds its weights."""
        return not self.details.get("strip_weights")


class _Details(Struct):
    """What of an engine's own facts something reads."""

    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatibility: str | None = None


class _WithDetails(Struct):
    details: _Details | None = None


class _DetailsOfManifest(Struct):
    """The way to the details, so that a wrong one is named by its whole name."""

    engine: _WithDetails


class Weights(_Fields, frozen=True, kw_only=True):
    """Where the weights came from.

    `ema`: whether averaged ones were to be preferred; `top1`: of their training; `repository`, `revision`: of the Hugging
    Face Hub, and the commit.
    """

    source: Text
    sha256: Sha256 | None = None
    entry: str | None = None
    key: str | None = None
    ema: bool = True
    top1: Percent | None = None
    seed: int | None = None
    repository: Text | None = None
    revision: Text | None = None

    def __post_init__(self) -> None:
        if not self.is_random and self.sha256 is None:
            raise ValueError("it has no sha256, and only random weights have none")

    @property
    def is_random(self) -> bool:
        return self.source == RANDOM

    def to_dict(self) -> dict[str, Any]:
        if self.is_random:
            return {"source": self.source, "seed": self.seed}
        left_out = {"seed", *(name for name in ("key", "repository", "revision") if not getattr(self, name))}
        return {name: value for name, value in super().to_dict().items() if name not in left_out}


class File(_Fields, frozen=True, kw_only=True):
    """A file of the bundle."""

    sha256: Sha256
    bytes: Count


class BuildFacts(_Fields, frozen=True, kw_only=True):
    """What a build knows of what it built: the manifest without the files.

    Attributes:
        outputs: of the engine, in order; None where that is the logits alone.
    """

    model: Model
    outputs: Annotated[list[OutputFacts], Meta(min_length=1)] | None = None
    classes: Annotated[list[str], Meta(min_length=1)] | None
    preprocessing: dict[str, Any]
    preprocessing_source: dict[str, str] = {}
    precision: Literal[tuple(TOLERANCE)]
    batch: Batch
    opset: Annotated[int, Meta(ge=1, le=100)]
    engine: EngineFacts
    weights: Weights
    calibration: dict[str, Any] | None = None
    compared_on: str | None = None
    versions: dict[str, str | None] = {}
    command: Text = "sit-deploy build"

    def __post_init__(self) -> None:
        names, count = self.classes, self.model.num_classes
        if names is not None and len(names) != count:
            raise ValueError(f"classes has {len(names)} names for the {count} classes of model.num_classes")
        if self.has_logits and not count:
            raise ValueError("model.num_classes is 0, and outputs has logits")
        given = [(one.name, len(one.shape)) for one in self.outputs or ()]
        wanted = [(name, 1 + (name == "patches")) for name in OUTPUTS if name in dict(given)]
        if given != wanted or (self.has_logits and self.given[0].shape != (count,)):
            raise ValueError(
                f"outputs are not {', '.join(OUTPUTS)} or some of them, in this order and of their shapes"
            )

    @property
    def given(self) -> tuple[Output, ...]:
        """What the engine gives, in order."""
        if self.outputs is None:
            return (Output(LOGITS, (self.model.num_classes,)),)
        return tuple(Output(one.name, tuple(one.shape), one.dtype) for one in self.outputs)

    @property
    def has_logits(self) -> bool:
        """Whether the engine gives scores of classes."""
        return self.outputs is None or any(one.name == LOGITS for one in self.outputs)

    @property
    def class_names(self) -> list[str]:
        """Class names in label order; their numbers where there are no names; none without logits."""
        if not self.has_logits:
            return []
        return self.classes or [str(i) for i in range(self.model.num_classes)]

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        if self.outputs is None:  # as bundles of before
            del fields["outputs"]
            return fields
        return {**fields, "outputs": [one.to_dict() for one in self.outputs]}

    @property
    def origin(self) -> engines.EngineOrigin:
        """How the engine was built: one that is stale here is refused by it."""
        return engines.EngineOrigin(
            self.engine.version, self.engine.target, self.engine.details, self.command
        )


class Manifest(BuildFacts, frozen=True, kw_only=True, dict=True):
    """The whole; `schema` and `digest` are checked before anything else is."""

    schema: int
    files: dict[str, File]
    digest: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.files:
            if name != PurePath(name).name or name in ("", ".", "..") or "\0" in name:
                raise ValueError(f"files has {name!r}, which is no plain file name")
        if self.engine.file not in self.files:
            raise ValueError(f"files lists no hash for {self.engine.file!r}, the file of engine")

    @property
    def bytes(self) -> int:
        """The size of the bundle's files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def engine_bytes(self) -> int:
        """The size of the engine's files: a graph may have its weights beside it."""
        stem = PurePath(self.engine.file).stem
        return sum(file.bytes for name, file in self.files.items() if PurePath(name).stem == stem)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as manifest.json has them, those of a newer version included."""
        if (read := self.__dict__.get("read")) is not None:
            return copy.deepcopy(read)
        return {**super().to_dict(), "files": {name: file.to_dict() for name, file in self.files.items()}}

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a pickle or a deep copy makes it again; msgspec would leave out what a newer version wrote."""
        return _manifest_again, (self.to_dict(),)


def _manifest_again(fields: dict[str, Any]) -> Manifest:
    return parse_manifest(fields, "a manifest", "load its bundle again")


def parse_manifest(fields: Any, where: object, remedy: str) -> Manifest:
    """Return the manifest of the parsed manifest.json, every field of it checked.

    Args:
        fields: the parsed JSON.
        where: what to call it.
        remedy: what to do about a wrong one.

    Raises:
        InputError: not a manifest, of a newer schema, changed since it was written, or with a wrong field: the first is named.
    """
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise InputError(f"{where} is not a manifest of sit-deploy; {remedy}")
    if schema > SCHEMA:
        raise InputError(
            f"{Path(str(where)).parent} is a bundle of schema {schema}, newer than the {SCHEMA} known here; upgrade sit-deploy"
        )
    if "digest" not in fields:
        raise InputError(f"{where}: it lacks digest; {remedy}")
    if fields["digest"] != digest(fields):
        raise InputError(
            f"{where} was changed: it does not match its digest; copy it again or build the bundle again"
        )
    from sit_deploy.preprocessing import Preprocessing

    manifest = check(fields, Manifest, where, remedy)
    check(fields, _DetailsOfManifest, where, remedy)
    try:
        preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    except InputError as error:
        raise InputError(f"{where}: {error}; {remedy}") from None
    if preprocessing.size != manifest.model.image_size:
        said, given = ("x".join(map(str, size)) for size in (manifest.model.image_size, preprocessing.size))
        raise InputError(
            f"{where}: preprocessing gives {given} pixels, and model.image_size is {said}; {remedy}"
        )
    manifest.__dict__["read"] = fields
    return manifest


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write manifest.json with the hash and size of every other file in `folder`, and its own digest.

    Args:
        folder: of the bundle.
        fields: of `BuildFacts`.
    """
    files = {
        p.name: {"sha256": sha256(p), "bytes": p.stat().st_size}
        for p in sorted(folder.iterdir())
        if p.name != MANIFEST
    }
    schema = _NAMED_OUTPUTS if fields.get("outputs") else _LOGITS_ALONE
    whole = {"schema": schema, **fields, "files": files}
    whole["digest"] = digest(whole)
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
