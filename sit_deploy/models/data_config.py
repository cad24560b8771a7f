"""Which preprocessing a model gets, and who says so: options, the model card, what the checkpoint's own trainer wrote down, or
the configuration that goes with the model's name.

A trainer's word is believed where it cannot mean anything else: three numbers called mean, three called std. It stands in the
checkpoint (timm's `args`, Lightning's `hyper_parameters`, ...) or in a file beside it (preprocessor_config.json of Hugging
Face's transformers, config.json of timm).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig

if TYPE_CHECKING:  # what reads options is to be quick, without NumPy
    from sit_deploy.models.card import ModelCard
    from sit_deploy.preprocessing import Preprocessing

OPTIONS, CARD, RECIPE = "the options", "the model card", "the recipe"
FIELDS = ("mean", "std", "crop_pct", "interpolation", "orientation")
# where trainers keep what they were started with
_ENTRIES = ("args", "hyper_parameters", "hparams", "data_config", "pretrained_cfg", "config", "cfg")
_BESIDE = ("preprocessor_config.json", "config.json")
_NAMES = ("model", "model_name", "arch", "architecture")  # what they call the name of a model
_PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by number, as transformers writes them
_MAX_BYTES = 1_000_000  # of a file beside


@dataclass(frozen=True)
class Said:
    """What one source says of the preprocessing; None where it is silent.

    source: what it is, in words. like: the preprocessing whose resize `crop_pct` stands for, where that is exact.
    """

    source: str
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None
    like: Preprocessing | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in FIELDS)

    def check(self) -> Said:
        """Return it, if it can be.

        Raises:
            InputError: a value out of range; says what to pass.
        """
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            given = ",".join(f"{v:g}" for v in values)
            if max(values) > 1 and min(values) >= 0:
                ready = ",".join(f"{v / 255:.4g}" for v in values)
                raise InputError(
                    f"--{name} is of values from 0 to 1, got {given}; if it is of 0 to 255, pass --{name} {ready}"
                )
            low, bound = (0.0, "0 to 1") if name == "mean" else (1e-6, "above 0 to 1")
            if not all(low <= v <= 1 for v in values):  # false for NaN too
                raise InputError(
                    f"--{name} must be from {bound}, got {given}; pass for example {_EXAMPLES[name]}"
                )
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            share = f"{self.crop_pct / 100:g}" if 1 < self.crop_pct <= 100 else "0.875"
            raise InputError(
                f"--crop-pct is a share, above 0 and at most 1, got {self.crop_pct:g}; pass for example --crop-pct {share}"
            )
        if self.interpolation is None and self.orientation is None:
            return self
        from sit_deploy.preprocessing import INTERPOLATIONS, ORIENTATIONS

        for name, known in (("interpolation", INTERPOLATIONS), ("orientation", ORIENTATIONS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"--{name} {value} is not offered; choose {', '.join(known)}")
        return self

    def resize(self, size: int) -> int:
        """Return the pixels of the resized shorter side of which `size` are kept."""
        return self.like.at(size).resize if self.like else int(size / self.crop_pct)

    def options(self) -> dict[str, Any]:
        """Return the options that say the same."""
        told = {name: getattr(self, name) for name in FIELDS}
        return {
            f"--{name.replace('_', '-')}": ",".join(map(repr, value)) if isinstance(value, tuple) else value
            for name, value in told.items()
        }


_EXAMPLES = {"mean": "--mean 0.485,0.456,0.406", "std": "--std 0.229,0.224,0.225"}


@dataclass(frozen=True)
class Choice:
    """A preprocessing, who says each part of it (by `FIELDS`), and where somebody says otherwise, a sentence each."""

    preprocessing: Preprocessing
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list)


def by_options(request: Any) -> Said:
    """Return what the options of a request say, the fields of which are called as in `FIELDS`."""
    return Said(OPTIONS, **{name: getattr(request, name) for name in FIELDS}).check()


def by_card(card: ModelCard) -> Said:
    """Return what a model card says."""
    ours = card.preprocessing
    crop = max(ours.size) / ours.resize
    return Said(CARD, ours.mean, ours.std, crop, ours.interpolation, ours.orientation, ours)


def by_name(config: ModelConfig) -> Said:
    """Return what goes with a model's name; of how its pictures lay nothing is known."""
    whose = "timm's configuration" if config.base else "the configuration"
    name = config.base or config.name
    return Said(f"{whose} of {name}", config.mean, config.std, config.crop_pct, config.interpolation)


def overridden(preprocessing: Preprocessing, said: Said) -> Preprocessing:
    """Return the preprocessing of a bundle with what options say in place of its own.

    Raises:
        InputError: a mean or std of a bundle whose graph normalises by itself.
    """
    if preprocessing.takes_pixels and (said.mean or said.std):
        raise InputError(
            "the bundle's graph normalises by itself (--input uint8), so --mean and --std cannot be other here; build it again "
            "with them"
        )
    told = {name: getattr(said, name) for name in FIELDS if name != "crop_pct"}
    changed = {name: value for name, value in told.items() if value is not None}
    if said.crop_pct is not None:
        changed["resize"] = said.resize(max(preprocessing.size))
    return replace(preprocessing, **changed)


def choose(size: int, said: Sequence[Said], named: Said, orientation: str) -> Choice:
    """Return the preprocessing of a `size` x `size` input: of each part, the first that says it.

    Args:
        said: sources, the strongest first. named: what holds where they are silent. orientation: likewise.
    """
    from sit_deploy.preprocessing import Preprocessing

    default = _DEFAULTS[orientation]
    taken, notes = {}, []
    for name in FIELDS:
        first, *others = (s for s in (*said, named, default) if getattr(s, name) is not None)
        taken[name] = first
        # an option, a card or a recipe is meant to say otherwise than the name alone
        heard = [
            s for s in others if s in said or (s is named and first.source not in (OPTIONS, CARD, RECIPE))
        ]
        notes += [_disagreement(name, first, other) for other in heard if not _same(name, first, other, size)]
    preprocessing = Preprocessing(
        (size, size),
        taken["crop_pct"].resize(size),
        taken["interpolation"].interpolation,
        taken["mean"].mean,
        taken["std"].std,
        orientation=taken["orientation"].orientation,
    )
    return Choice(preprocessing, {name: first.source for name, first in taken.items()}, notes)


def _disagreement(name: str, taken: Said, other: Said) -> str:
    option = name.replace("_", "-")
    remedy = "" if taken.source == OPTIONS else f"; --{option} says otherwise"
    return (
        f"preprocessing: {option} {_text(getattr(taken, name))} of {taken.source} is taken, not {_text(getattr(other, name))} "
        f"of {other.source}{remedy}"
    )


_DEFAULTS = {
    "stored": Said("the default for weights trained elsewhere", orientation="stored"),
    "exif": Said("the default of sit-deploy train", orientation="exif"),
}


def _same(name: str, one: Said, other: Said, size: int) -> bool:
    if name == "crop_pct":
        return one.resize(size) == other.resize(size)
    ours, theirs = getattr(one, name), getattr(other, name)
    if name in ("mean", "std"):
        return all(abs(a - b) < 1e-4 for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(f"{v:g}" for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(fields: Mapping[str, Any], sources: Mapping[str, str] | None) -> str:
    """Return in one line how pictures are prepared, and who says so.

    fields: as `Preprocessing.to_dict` gives them. sources: see `Choice`; who it was is left out where it is not known.
    """
    height, width = fields["size"]
    shown = {
        "mean": f"mean {_text(fields['mean'])}",
        "std": f"std {_text(fields['std'])}",
        "crop_pct": f"shorter side to {fields['resize']} and centre {height} x {width}",
        "interpolation": fields["interpolation"],
        "orientation": "turned by EXIF"
        if fields.get("orientation") == "exif"
        else "pixels as stored, EXIF unheeded",
    }
    if not sources:
        return f"{', '.join(shown.values())}"
    groups: dict[str, list[str]] = {}
    for name in FIELDS:
        groups.setdefault(sources.get(name, "unknown"), []).append(shown[name])
    return "; ".join(f"{', '.join(parts)} (from {source})" for source, parts in groups.items())


# ------------------------------------------------------------------------------------------- what checkpoints say


def by_checkpoint(path: Path) -> list[Said]:
    """Return what a checkpoint's own trainer says, within the file first. Nothing of the file is run, no weight is read."""
    from sit_deploy.models.file_kind import find_file

    path, found = find_file(path), []
    content = _content(path)
    if isinstance(content, Mapping):
        for entry in _ENTRIES:
            found.append(_said_by(content.get(entry), f"{entry} in {path.name}"))
    for name in _BESIDE:
        beside = path.with_name(name)
        fields = _read_json(beside)
        told = _said_by_transformers(fields, name) if name == _BESIDE[0] else None
        found.append(told or _said_by(fields.get("pretrained_cfg"), f"{name} beside {path.name}"))
    return [said for said in found if said]


def _content(path: Path) -> Any:
    """Return what a file holds beside its weights, nothing where it cannot be read: reading the weights says why."""
    from sit_deploy.models.file_kind import file_kind
    from sit_deploy.models.torch_file import read_archive, read_stream

    try:
        reader = {"archive": read_archive, "stream": read_stream}.get(file_kind(path))
        return reader(path) if reader else None
    except Exception:  # of any type, of damaged bytes
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # some other program's: it is no fault of the checkpoint
        return {}
    return found if isinstance(found, dict) else {}


def _said_by(entry: Any, source: str) -> Said | None:
    """Return what a trainer's arguments say; those that name another model than values, what goes with that name."""
    fields = entry if isinstance(entry, Mapping) else getattr(entry, "state", None)  # of a pickled Namespace
    if not isinstance(fields, Mapping):
        return None
    from sit_deploy.preprocessing import INTERPOLATIONS

    mean, std, crop = _three(fields.get("mean")), _three(fields.get("std")), fields.get("crop_pct")
    interpolation = fields.get("interpolation")
    told = Said(
        source,
        mean,
        std,
        float(crop) if _is_number(crop) and 0 < crop <= 1 else None,
        interpolation if interpolation in INTERPOLATIONS else None,
    )
    name = next((fields[key] for key in _NAMES if isinstance(fields.get(key), str)), None)
    trained = _config_of(name)
    if trained is None:
        return told
    parts = {key: value for key in FIELDS if (value := getattr(told, key)) is not None}
    return replace(by_name(trained), source=f"{source}, trained as {name}", **parts)


def _config_of(name: str | None) -> ModelConfig | None:
    try:
        return get_config(name) if name else None
    except InputError:  # no name of ours or timm's, or none that can be deployed: it tells us nothing
        return None


def _said_by_transformers(fields: Mapping[str, Any], name: str) -> Said | None:
    normalises, scale = fields.get("do_normalize", True), fields.get("rescale_factor", 1 / 255)
    mean, std = _three(fields.get("image_mean")), _three(fields.get("image_std"))
    if normalises is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not _is_number(scale) or abs(scale * 255 - 1) > 1e-3 or fields.get("do_rescale", True) is False:
        mean = std = None  # of values in another range than ours
    size, crop = (fields.get(key) for key in ("size", "crop_size"))
    share = fields.get("crop_pct")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    cropped = crop.get("height") if isinstance(crop, Mapping) else crop
    if fields.get("do_center_crop") is True and _is_number(shorter) and _is_number(cropped) and shorter:
        share = cropped / shorter
    said = Said(
        name,
        mean,
        std,
        float(share) if _is_number(share) and 0 < share <= 1 else None,
        _PILLOW_FILTERS.get(fields.get("resample")) if isinstance(fields.get("resample"), int) else None,
    )
    return replace(said, source=f"{name} beside the checkpoint") if said else None


def _three(value: Any) -> tuple[float, float, float] | None:
    """Return a mean or std in [0, 1] of three channels, None where it is anything else."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        values = list(value)
        if len(values) == 3 and all(_is_number(v) and 0 <= v <= 1 for v in values):
            return tuple(map(float, values))
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
