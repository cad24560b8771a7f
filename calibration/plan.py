"""The quantization plan: which layers run in 8 bits and which stay high, and why.

It is made here by groups of layers, changed by the accuracy budget, and shown by `sit-deploy inspect`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from calibration.errors import CalibrationError
from calibration.formats import GRIDS
from calibration.layers import GROUPS, Layer

HIGH = "high"  # a layer's precision: the type of the rest

WORTH_IT = 0.25  # a plan with less than this share of its work in 8 bits has nothing to gain over none

# What docs/quantization.md's ablation leaves: nearly all multiply-accumulates, at a small part of the error.
DEFAULT_GROUPS = frozenset({"qkv", "proj", "fc1", "fc2", "tsm", "linear"})


class Reason(Enum):
    """Why a layer runs in 8 bits or stays high. The value is the sentence; `{rank}` is the layer's."""

    CONSTANT_WEIGHT = "constant weight"
    ASKED_FOR = "asked for"
    NOT_ASKED_FOR = "not asked for"
    MAKES_ALL_TOKENS = "every token comes from it"
    MAKES_LATER_TOKENS = "every later token comes from it"
    POOLS_TOKENS = "of one token but for a narrow layer, so nearly no work"
    WRITES_LOGITS = "writes the logits, for little work"
    TWO_ACTIVATIONS = "product of two activations"
    CARRIES_ERRORS_ON = "carries every block's error on"
    FEW_TOKENS = "too few tokens for attention in 8 bits to stay one kernel"
    ACCURACY_BUDGET = "kept high for accuracy: number {rank} by harm for its work"
    OUTLIERS = "outliers: 8 bits hold them or the rest of what it reads, not both"
    TUNED_LOW = "chosen by timing the engine"
    TUNED_HIGH = "left high: by timing the engine, no gain for its error"
    TRAINED_IN_8_BITS = "trained in 8 bits"
    TRAINED_IN_FLOAT = "trained in float"


# Tokens from which TensorRT-RTX 1.7.1 makes one kernel of attention in 8 bits, by its log for sm80, sm89 and sm120. A single query it reads in 16
# bits, whatever the graph says; keys are the depth of the second product, and FP8's instructions multiply 32 deep.
_FEWEST_QUERIES = 2
_FEWEST_KEYS = {"int8": 1, "fp8": 32}

_LEFT_HIGH = {
    "stem": Reason.MAKES_ALL_TOKENS,
    "conv": Reason.MAKES_ALL_TOKENS,
    "pool": Reason.POOLS_TOKENS,
    "head": Reason.WRITES_LOGITS,
    "attention": Reason.TWO_ACTIVATIONS,
    "aggregation": Reason.MAKES_LATER_TOKENS,
    "residual": Reason.CARRIES_ERRORS_ON,
}


@dataclass(frozen=True)
class PlannedLayer:
    """A layer of a plan.

    Attributes:
        name: of its node in the graph.
        group: what kind of layer it is (`calibration.layers`).
        precision: "int8", "fp8", or HIGH.
        reason: why.
        macs: its multiply-accumulates for one image.
        rank: for Reason.ACCURACY_BUDGET, how many layers went back to higher precision up to this one.
    """

    name: str
    group: str
    precision: str
    reason: Reason
    macs: int
    rank: int | None = None

    @property
    def is_high(self) -> bool:
        """Whether it stays in the type of the rest."""
        return self.precision == HIGH

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return self.reason.value.format(rank=self.rank)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; the reason in words."""
        return {
            "name": self.name,
            "group": self.group,
            "precision": self.precision,
            "reason": self.sentence,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class QuantPlan:
    """What runs in 8 bits, layer by layer in graph order."""

    precision: str
    layers: tuple[PlannedLayer, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that run in 8 bits."""
        return tuple(layer.name for layer in self.layers if not layer.is_high)

    @property
    def kept_for_accuracy(self) -> tuple[str, ...]:
        """Names of the layers that an accuracy budget keeps high."""
        return tuple(layer.name for layer in self.layers if layer.reason is Reason.ACCURACY_BUDGET)

    @property
    def share(self) -> float:
        """Share of the layers' multiply-accumulates that run in 8 bits."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if not layer.is_high) / max(total, 1)

    @property
    def kept_for_outliers(self) -> tuple[str, ...]:
        """Names of the layers that outliers keep high."""
        return tuple(layer.name for layer in self.layers if layer.reason is Reason.OUTLIERS)

    def without_outliers(self, names: Collection[str]) -> QuantPlan:
        """Return a plan in which these layers stay high for their outliers."""
        layers = tuple(
            replace(layer, precision=HIGH, reason=Reason.OUTLIERS) if layer.name in names else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def of_groups(self, groups: Collection[str], *, timed: bool = True) -> QuantPlan:
        """Return a plan in which only layers of some of its groups are quantized.

        Args:
            groups: their names.
            timed: they were chosen by timing; else they are those that nobody asked to be others. What stays high for another reason
                goes on saying so.
        """
        layers = []
        for layer in self.layers:
            if layer.is_high:
                layers.append(layer)
            elif layer.group in groups:
                layers.append(replace(layer, reason=Reason.TUNED_LOW) if timed else layer)
            else:
                usual = _LEFT_HIGH.get(layer.group, Reason.NOT_ASKED_FOR)
                layers.append(replace(layer, precision=HIGH, reason=Reason.TUNED_HIGH if timed else usual))
        return replace(self, layers=tuple(layers))

    def keep_high(self, names: Sequence[str]) -> QuantPlan:
        """Return a plan in which these layers stay high for an accuracy budget; their order is their rank, from 1.

        Raises:
            CalibrationError: a layer that the plan does not have.
        """
        ranks = {name: rank for rank, name in enumerate(names, 1)}
        if unknown := sorted(ranks.keys() - {layer.name for layer in self.layers}):
            raise CalibrationError(f"the plan has no layer '{unknown[0]}'")
        layers = tuple(
            replace(layer, precision=HIGH, reason=Reason.ACCURACY_BUDGET, rank=ranks[layer.name])
            if layer.name in ranks
            else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {"precision": self.precision, "layers": [layer.to_dict() for layer in self.layers]}


def make_plan(
    layers: Mapping[str, Layer],
    precision: str = "int8",
    groups: Collection[str] | None = None,
    *,
    one_kernel: bool = False,
) -> QuantPlan:
    """Quantize the layers of some groups.

    Args:
        layers: of `find_layers`.
        precision: "int8" or "fp8".
        groups: names of groups, "all" for every layer with a weight, "default" for the default ones; None for those. A minus and
            the name of a layer leave that one high.
        one_kernel: leave high the attention that would be one kernel then, and several in 8 bits (TensorRT).

    Raises:
        CalibrationError: an unknown precision, group or layer, or nothing to quantize.
    """
    if precision not in GRIDS:
        raise CalibrationError(f"'{precision}' is not one of {', '.join(GRIDS)}")
    chosen = {"default"} if groups is None else set(groups)
    left = {name for name in chosen if name.startswith("-")}
    chosen -= left
    if unknown := sorted(left - {f"-{name}" for name in layers}):
        raise CalibrationError(f"there is no layer '{unknown[0][1:]}'; `sit-deploy inspect` lists them")
    check_groups(chosen)
    if "default" in chosen:
        chosen |= DEFAULT_GROUPS
    planned = []
    for layer in layers.values():
        if f"-{layer.name}" in left:
            planned.append(PlannedLayer(layer.name, layer.group, HIGH, Reason.NOT_ASKED_FOR, layer.macs))
        elif one_kernel and layer.group in chosen and _falls_apart(layer, precision):
            planned.append(PlannedLayer(layer.name, layer.group, HIGH, Reason.FEW_TOKENS, layer.macs))
        elif layer.group in chosen or ("all" in chosen and layer.weight is not None):
            reason = Reason.CONSTANT_WEIGHT if layer.weight is not None else Reason.ASKED_FOR
            planned.append(PlannedLayer(layer.name, layer.group, precision, reason, layer.macs))
        else:
            reason = _LEFT_HIGH.get(layer.group, Reason.NOT_ASKED_FOR)
            planned.append(PlannedLayer(layer.name, layer.group, HIGH, reason, layer.macs))
    plan = QuantPlan(precision, tuple(planned))
    if not plan.quantized:
        raise CalibrationError("the plan quantizes no layer; choose groups that the model has")
    return plan


def check_groups(groups: Collection[str]) -> None:
    """Refuse names that no group of layers has, whatever the model; a layer that is left out (`-NAME`) only a graph can tell.

    Raises:
        CalibrationError: names the first.
    """
    known = (*GROUPS, "linear", "conv", "default", "all")
    if strange := sorted(name for name in groups if name not in known and not name.startswith("-")):
        raise CalibrationError(f"no layers are called '{strange[0]}'; choose from {', '.join(known)}")


def _falls_apart(layer: Layer, precision: str) -> bool:
    """Whether a layer is a product of attention that is several kernels in 8 bits."""
    if layer.attention is None:
        return False
    queries, keys = layer.attention
    return queries < _FEWEST_QUERIES or keys < _FEWEST_KEYS[precision]


def order_of_return(plan: QuantPlan, noise: Mapping[str, float]) -> list[str]:
    """Return the plan's layers, those that should go back to higher precision first, first.

    Args:
        plan: with all layers that may run in 8 bits.
        noise: by layer, the power of the logits' error with that layer alone in 8 bits.
    """
    macs = {layer.name: max(layer.macs, 1) for layer in plan.layers}
    return sorted(plan.quantized, key=lambda name: (-noise[name] / macs[name], name))
