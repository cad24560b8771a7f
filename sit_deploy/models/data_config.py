"""How a model's images are prepared (timm's "data config"), and which of several sources decides each part of it.

Sources, the strongest first: the options, the model card, what the checkpoint's own trainer wrote down
(`sit_deploy.models.trainer_config`), the configuration that goes with the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.models.config import ModelConfig
from sit_deploy.text import WarningText

if TYPE_CHECKING:  # what reads options is to be quick, without NumPy
    from sit_deploy.models.card import ModelCard
    from sit_deploy.preprocessing import Preprocessing

FIELDS = ("mean", "std", "crop_mode", "crop_pct", "interpolation", "orientation")


class Source(Enum):
    """Who can say how images are prepared, and what it is called where it has no name of its own."""

    OPTIONS = "the options"
    CARD = "the model card"
    RECIPE = "the recipe"
    TRAINER = "the checkpoint's trainer"
    MODEL_NAME = "the configuration"
    DEFAULT = "the default"


# what is meant to say otherwise than the name alone, so that nothing is to be noted where it does
_DELIBERATE = (Source.OPTIONS, Source.CARD, Source.RECIPE)


@dataclass(frozen=True)
class DataConfig:
    """What one source says of the preprocessing; None where it is silent.

    Attributes:
        source: who says it.
        mean: of each channel, of values from 0 to 1.
        std: likewise.
        crop_mode: how an image comes to be a square, by timm's names: "center", cropped; "squash", squeezed; "border", padded,
            which is not done here.
        crop_pct: share of the resized sides that the centre crop keeps.
        interpolation: of the resize.
        orientation: whether pictures are turned as their EXIF says.
        crop_offset: where a crop begins that is between two pixels (`Preprocessing`); no option says it.
        title: the source's own name, for messages: the file and entry, or the model.
        like: the preprocessing whose resize `crop_pct` stands for, where that is exact.
        side: pixels of the squares that images become, where it says so.
    """

    source: Source
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None
    crop_offset: str | None = None
    title: str = ""
    like: Preprocessing | None = None
    side: int | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in FIELDS)

    @property
    def words(self) -> str:
        """What its source is called in messages and manifests."""
        return self.title or self.source.value

    def check(self) -> DataConfig:
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
        if self.crop_mode is self.interpolation is self.orientation is None:
            return self
        from sit_deploy.preprocessing import CROP_MODES, INTERPOLATIONS, ORIENTATIONS

        for name, known in (
            ("crop_mode", CROP_MODES),
            ("interpolation", INTERPOLATIONS),
            ("orientation", ORIENTATIONS),
        ):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(
                    f"--{name.replace('_', '-')} {value} is not offered; choose {', '.join(known)}"
                )
        return self

    def resize(self, size: int) -> int:
        """Return the pixels of the resized sides of which `size` are kept."""
        return self.like.at(size).resize if self.like else int(size / self.crop_pct)

    def options(self) -> dict[str, Any]:
        """Return the options that say the same."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {
            f"--{name.replace('_', '-')}": ",".join(map(repr, value)) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


_EXAMPLES = {"mean": "--mean 0.485,0.456,0.406", "std": "--std 0.229,0.224,0.225"}


@dataclass(frozen=True)
class Choice:
    """A preprocessing and where it comes from.

    Attributes:
        preprocessing: what was chosen.
        deciding: whose word each part is, by `FIELDS`.
        notes: where another source says otherwise, or what is not done as it says, a sentence each.
    """

    preprocessing: Preprocessing
    deciding: dict[str, DataConfig]
    notes: list[str] = field(default_factory=list)

    @property
    def sources(self) -> dict[str, str]:
        """What the source of each part is called, by `FIELDS`."""
        return {name: config.words for name, config in self.deciding.items()}


def from_options(request: Any) -> DataConfig:
    """Return what the options of a request say, the fields of which are called as in `FIELDS`.

    Raises:
        InputError: a value out of range.
    """
    return DataConfig(Source.OPTIONS, **{name: getattr(request, name) for name in FIELDS}).check()


def from_card(card: ModelCard) -> DataConfig:
    """Return what a model card says."""
    ours = card.preprocessing
    crop = max(ours.size) / ours.resize
    values = (ours.mean, ours.std, ours.crop_mode, crop, ours.interpolation, ours.orientation)
    return DataConfig(Source.CARD, *values, crop_offset=ours.crop_offset, like=ours)


def from_name(config: ModelConfig) -> DataConfig:
    """Return what goes with a model's name; of how its pictures lay nothing is known."""
    whose = "timm's configuration" if config.base else Source.MODEL_NAME.value
    title = f"{whose} of {config.base or config.name}"
    values = (config.mean, config.std, config.crop_mode, config.crop_pct, config.interpolation)
    return DataConfig(Source.MODEL_NAME, *values, title=title)


def override(preprocessing: Preprocessing, options: DataConfig) -> Preprocessing:
    """Return the preprocessing of a bundle with what options say in place of its own.

    Raises:
        InputError: a mean or std of a bundle whose graph normalises by itself.
    """
    if preprocessing.takes_pixels and (options.mean or options.std):
        raise InputError(
            "the bundle's graph normalises by itself (--input uint8), so --mean and --std cannot be other here; build it again "
            "with them"
        )
    values = {name: getattr(options, name) for name in FIELDS if name != "crop_pct"}
    changed: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if options.crop_pct is not None:
        changed["resize"] = options.resize(max(preprocessing.size))
    return replace(preprocessing, **changed)


def choose(size: int, configs: Sequence[DataConfig], named: DataConfig, orientation: str) -> Choice:
    """Return the preprocessing of a `size` x `size` input: of each part, the first that says it.

    Args:
        size: of the model's input, in pixels.
        configs: of several sources, the strongest first.
        named: what holds where they are silent.
        orientation: what holds where none says: "stored" or "exif".
    """
    from sit_deploy.preprocessing import Preprocessing

    default = _DEFAULTS[orientation]
    taken: dict[str, DataConfig] = {}
    notes: list[str] = []
    sources = (*configs, named, default)
    for name in FIELDS:
        first, *others = (c for c in sources if getattr(c, name) is not None)
        taken[name] = first
        if first.crop_mode == "border" and name == "crop_mode":
            notes.append(_border_note(first))
            continue
        compared = [
            other
            for other in others
            if other in configs or (other is named and first.source not in _DELIBERATE)
        ]
        notes += [
            _disagreement(name, first, other) for other in compared if not _same(name, first, other, size)
        ]
    notes += [
        WarningText(
            f"preprocessing: {config.words} makes images of {config.side} pixels, and the model is built for {size}; pass --image-size "
            f"{config.side} to build it as it is used there"
        )
        for config in configs
        if config.side and config.side != size
    ]
    preprocessing = Preprocessing(
        (size, size),
        taken["crop_pct"].resize(size),
        taken["interpolation"].interpolation,
        taken["mean"].mean,
        taken["std"].std,
        orientation=taken["orientation"].orientation,
        crop_mode="squash" if taken["crop_mode"].crop_mode == "squash" else "center",
        crop_offset=next(filter(None, (config.crop_offset for config in sources)), "round"),
    )
    return Choice(preprocessing, taken, notes)


def _border_note(told: DataConfig) -> WarningText:
    return WarningText(
        f"preprocessing: by {told.words} images are padded to a square; here they are cropped at the centre, which is the same for "
        "square pictures alone"
    )


def _disagreement(name: str, taken: DataConfig, other: DataConfig) -> WarningText:
    option = name.replace("_", "-")
    remedy = "" if taken.source is Source.OPTIONS else f"; --{option} says otherwise"
    return WarningText(
        f"preprocessing: {option} {_text(getattr(taken, name))} of {taken.words} is taken, not {_text(getattr(other, name))} "
        f"of {other.words}{remedy}"
    )


_DEFAULTS = {
    "stored": DataConfig(
        Source.DEFAULT,
        crop_mode="center",
        orientation="stored",
        title="the default for weights trained elsewhere",
    ),
    "exif": DataConfig(
        Source.DEFAULT, crop_mode="center", orientation="exif", title="the default of sit-deploy train"
    ),
}


def _same(name: str, one: DataConfig, other: DataConfig, size: int) -> bool:
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

    Args:
        fields: as `Preprocessing.to_dict` gives them.
        sources: see `Choice.sources`; who it was is left out where it is not known.
    """
    height, width = fields["size"]
    squeezed = fields.get("crop_mode") == "squash"
    lower = " (half a pixel rounded down)" if fields.get("crop_offset") == "floor" else ""
    shown = {
        "mean": f"mean {_text(fields['mean'])}",
        "std": f"std {_text(fields['std'])}",
        "crop_mode": "squeezed into a square" if squeezed else None,
        "crop_pct": f"{'side' if squeezed else 'shorter side'} to {fields['resize']} and centre {height} x {width}{lower}",
        "interpolation": fields["interpolation"],
        "orientation": "turned by EXIF"
        if fields.get("orientation") == "exif"
        else "pixels as stored, EXIF unheeded",
    }
    if not sources:
        return ", ".join(filter(None, shown.values()))
    groups: dict[str, list[str]] = {}
    for name in FIELDS:
        if shown[name]:
            groups.setdefault(sources.get(name, "unknown"), []).append(shown[name])
    return "; ".join(f"{', '.join(parts)} (from {source})" for source, parts in groups.items())
