"""What a graph gives: the names of its outputs, their shapes and meanings. timm's terms; see docs/outputs.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import InputError

LOGITS, FEATURES, CLS, PATCHES = "logits", "features", "cls", "patches"

# in the order of a graph's outputs: the first of a graph is what 8 bits are chosen by, and what a call of a classifier gives
MEANINGS = {
    LOGITS: "scores of the classes, before the softmax",
    FEATURES: "what a head reads: tokens pooled, and normalised behind that where the model does (timm's forward_head(pre_logits=True))",
    CLS: "the class token behind the last block and the final norm",
    PATCHES: "the patch tokens behind the last block and the final norm; of a slimmed model those that it keeps",
}
OUTPUTS = tuple(MEANINGS)
DEFAULT = (LOGITS,)


@dataclass(frozen=True)
class Output:
    """An output of a graph, float32 (images, *shape).

    Attributes:
        name: one of `OUTPUTS`.
        shape: of one image: (classes,), (dim,) or (patches, dim).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def is_embedding(self) -> bool:
        """Whether it has directions to compare, and no classes."""
        return self.name != LOGITS

    @property
    def shape_text(self) -> str:
        """The shape of n images: "(n, 384)"."""
        return f"(n, {', '.join(map(str, self.shape))})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        meaning = MEANINGS[self.name]
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "meaning": meaning}


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of outputs in the order that a graph has them, each once.

    Raises:
        InputError: there is none, or one is no output.
    """
    asked = [name.strip() for name in names]
    for name in asked:
        if name not in MEANINGS:
            raise InputError(
                f"--outputs {name[:40] or '(nothing)'} is not offered; choose from {', '.join(OUTPUTS)}"
            )
    if not asked:
        raise InputError(f"--outputs names no output; choose from {', '.join(OUTPUTS)}")
    return tuple(name for name in OUTPUTS if name in asked)


def outputs_of(fields: Mapping[str, Any]) -> tuple[Output, ...]:
    """Return the outputs that a manifest says: the logits, where it says nothing of any.

    Args:
        fields: of manifest.json.
    """
    listed = fields.get("outputs")
    if listed is None:
        return (Output(LOGITS, (fields["model"]["num_classes"],)),)
    return tuple(Output(one["name"], tuple(one["shape"]), one["dtype"]) for one in listed)


def has_classes(names: Iterable[str]) -> bool:
    """Whether outputs tell classes, which `predict` needs."""
    return LOGITS in names


def can_be_reported(names: Iterable[str]) -> bool:
    """Whether one of the outputs is one vector an image, as patches alone are not: `sit-deploy report` compares images by the first of them.

    Nothing sends people there with another bundle.
    """
    return any(name != PATCHES for name in names)


def listing(names: Sequence[str]) -> str:
    """Return names for a sentence: "a", "a and b", "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
