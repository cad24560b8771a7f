"""The model card: what a trained model is, as fields and as JSON. `sit_deploy.models.card_file` keeps it with the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sit_deploy import limits
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    from sit_deploy.preprocessing import Preprocessing

SCHEMA = 1
_LARGEST_FLOAT = 3.4e38  # of float32, in which thresholds are used


@dataclass(frozen=True)
class ModelCard:
    """A model as it was trained.

    Attributes:
        name: ours or timm's.
        stages: blocks of each stage.
        keeping_ratio: share of the patch tokens that each further stage keeps; None where `tokens` alone say how many.
        tokens: patch tokens of each stage at `image_size`.
        image_size: side of its square images in pixels.
        num_classes: outputs of its head.
        preprocessing: of evaluation.
        dist_token: whether it has the token of a CNN teacher.
        classes: their names in label order, None where they have none.
        metrics: what was reached, for people: any JSON.
        training: how it was reached, likewise.
        quantization: what it was trained to be rounded with, None for a model trained in float: {"grid": "int8",
            "thresholds": {node of the deployed graph: the |x| of its input that has the largest code}}; other layers were
            trained in float.
    """

    name: str
    stages: tuple[int, ...]
    keeping_ratio: float | None
    tokens: tuple[int, ...]
    image_size: int
    num_classes: int
    preprocessing: Preprocessing
    dist_token: bool = False
    classes: tuple[str, ...] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None

    @property
    def kept(self) -> tuple[int, ...] | None:
        """`tokens`, where no ratio gives them."""
        return self.tokens if self.keeping_ratio is None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with every field; without `quantization` where there is none, as readers of old know it."""
        fields = {
            "schema": SCHEMA,
            "model": {
                "name": self.name,
                "stages": list(self.stages),
                "keeping_ratio": self.keeping_ratio,
                "tokens": list(self.tokens),
                "image_size": self.image_size,
                "num_classes": self.num_classes,
                "dist_token": self.dist_token,
            },
            "classes": None if self.classes is None else list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "metrics": self.metrics,
            "training": self.training,
        }
        return fields if self.quantization is None else {**fields, "quantization": self.quantization}

    @classmethod
    def from_dict(cls, fields: Any) -> ModelCard:
        """The inverse of `to_dict`.

        Raises:
            InputError: a newer schema, or a missing, unknown or wrong field.
        """
        from sit_deploy.preprocessing import Preprocessing

        if not isinstance(fields, dict) or not _is_int(fields.get("schema")):
            raise InputError("it is no card of sit-deploy; save the model again")
        if fields["schema"] > SCHEMA:
            raise InputError(
                f"it is of schema {fields['schema']}, newer than the {SCHEMA} known here; upgrade sit-deploy"
            )
        top = ("schema", "model", "classes", "preprocessing", "metrics", "training")
        _check_fields({k: v for k, v in fields.items() if k != "quantization"}, top, "the card")
        model, classes = fields["model"], fields["classes"]
        _check_fields(model, tuple(_MODEL_FIELDS), "its model")
        for name, (is_right, wanted) in _MODEL_FIELDS.items():
            if not is_right(model[name]):
                raise InputError(f"its {name} must be {wanted}, got {model[name]!r}")
        if len(model["stages"]) != len(model["tokens"]):
            raise InputError(
                f"its tokens {model['tokens']} are not one for each of the stages {model['stages']}"
            )
        if model["keeping_ratio"] is None and sorted(model["tokens"], reverse=True) != model["tokens"]:
            raise InputError(f"its tokens {model['tokens']} grow, and slimming must not")
        if classes is not None and not (
            isinstance(classes, list) and all(isinstance(c, str) for c in classes)
        ):
            raise InputError("its classes must be a list of names, or null")
        if classes is not None and len(classes) != model["num_classes"]:
            raise InputError(f"it has {len(classes)} class names for {model['num_classes']} classes")
        for name in ("metrics", "training"):
            if not isinstance(fields[name], dict):
                raise InputError(f"its {name} must be named fields, got {fields[name]!r}")
        top1 = fields["metrics"].get("top1")
        if top1 is not None and not (_is_number(top1) and 0 <= top1 <= 100):
            raise InputError(f"its metrics' top1 must be a percentage, got {top1!r}")
        if "quantization" in fields:
            _check_quantization(fields["quantization"])
        preprocessing = Preprocessing.from_dict(fields["preprocessing"])
        if preprocessing.size != (model["image_size"],) * 2:
            raise InputError(
                f"its preprocessing gives {preprocessing.size[0]}x{preprocessing.size[1]} pixels, its model takes {model['image_size']}"
            )
        return cls(
            name=model["name"],
            stages=tuple(model["stages"]),
            keeping_ratio=None if model["keeping_ratio"] is None else float(model["keeping_ratio"]),
            tokens=tuple(model["tokens"]),
            image_size=model["image_size"],
            num_classes=model["num_classes"],
            preprocessing=preprocessing,
            dist_token=model["dist_token"],
            classes=None if classes is None else tuple(classes),
            metrics=fields["metrics"],
            training=fields["training"],
            quantization=fields.get("quantization"),
        )


def _check_fields(fields: Any, wanted: tuple[str, ...], what: str) -> None:
    if not isinstance(fields, dict):
        raise InputError(f"{what} must be named fields, got {fields!r}")
    for trouble, names in (
        ("lacks", set(wanted) - fields.keys()),
        ("has unknown", fields.keys() - set(wanted)),
    ):
        if names:
            raise InputError(f"{what} {trouble} {', '.join(sorted(map(str, names)))}; save the model again")


def _check_quantization(fields: Any) -> None:
    _check_fields(fields, ("grid", "thresholds"), "its quantization")
    if fields["grid"] != "int8":
        raise InputError(f"its quantization must be on the grid int8, got {fields['grid']!r}")
    thresholds = fields["thresholds"]
    if not isinstance(thresholds, dict) or not thresholds:
        raise InputError(f"its thresholds must be numbers by node, got {thresholds!r}")
    for node, value in thresholds.items():
        if not _is_number(value) or not 0 < value <= _LARGEST_FLOAT:
            raise InputError(f"its threshold of {node} must be above 0, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any, most: int = limits.INTEGER) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= limits.BLOCKS and all(map(_is_int, value))


_MODEL_FIELDS = {
    "name": (lambda v: isinstance(v, str) and bool(v), "the name of a model"),
    "stages": (_is_counts, "blocks of each stage"),
    "keeping_ratio": (lambda v: v is None or (_is_number(v) and 0 < v <= 1), "above 0 and at most 1"),
    "tokens": (_is_counts, "tokens of each stage"),
    "image_size": (lambda v: _is_int(v, limits.PIXELS), f"a number of pixels up to {limits.PIXELS}"),
    "num_classes": (lambda v: _is_int(v, limits.CLASSES), f"from 1 to {limits.CLASSES}"),
    "dist_token": (lambda v: isinstance(v, bool), "true or false"),
}
