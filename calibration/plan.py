"""Which layers run in 8 bits and which stay high, and why: decided here, shown by `sit-deploy inspect`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from calibration.errors import CalibrationError
from calibration.layers import GROUPS, Layer

PRECISIONS = ("int8", "fp8")

# What docs/quantization.md's ablation leaves: nearly all multiply-accumulates, at a small part of the error.
DEFAULT_GROUPS = frozenset({"qkv", "proj", "fc1", "fc2", "tsm", "linear"})
_HIGH = {
    "stem": "every token comes from it",
    "conv": "every token comes from it",
    "head": "writes the logits, for little work",
    "attention": "product of two activations",
    "aggregation": "every later token comes from it",
    "residual": "carries every block's error on",
}


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, what it runs in ("int8", "fp8", or "high": the type of the rest), and why."""

    name: str
    group: str
    precision: str
    reason: str
    macs: int


@dataclass(frozen=True)
class QuantPlan:
    """What runs in 8 bits, layer by layer in graph order."""

    precision: str
    layers: tuple[PlannedLayer, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that run in 8 bits."""
        return tuple(layer.name for layer in self.layers if layer.precision != "high")

    @property
    def share(self) -> float:
        """Share of the layers' multiply-accumulates that run in 8 bits."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.precision != "high") / max(total, 1)

    def keep_high(self, reasons: Mapping[str, str]) -> QuantPlan:
        """Return a plan in which the layers named stay high for the reasons given.

        Raises:
            CalibrationError: a layer that the plan does not have.
        """
        if unknown := sorted(reasons.keys() - {layer.name for layer in self.layers}):
            raise CalibrationError(f"the plan has no layer '{unknown[0]}'")
        return replace(
            self,
            layers=tuple(
                replace(layer, precision="high", reason=reasons[layer.name])
                if layer.name in reasons
                else layer
                for layer in self.layers
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)


def make_plan(
    layers: Mapping[str, Layer], precision: str = "int8", groups: Collection[str] | None = None
) -> QuantPlan:
    """Quantize the layers of some groups.

    Args:
        layers: of `find_layers`.
        groups: names of groups, "all" for every layer with a weight, "default" for the default ones; None for those.

    Raises:
        CalibrationError: an unknown precision or group, or nothing to quantize.
    """
    if precision not in PRECISIONS:
        raise CalibrationError(f"'{precision}' is not one of {', '.join(PRECISIONS)}")
    chosen = {"default"} if groups is None else set(groups)
    if "default" in chosen:
        chosen |= DEFAULT_GROUPS
    known = (*GROUPS, "linear", "conv", "default", "all")
    if strange := sorted(chosen - set(known)):
        raise CalibrationError(f"no layers are called '{strange[0]}'; choose from {', '.join(known)}")
    planned = []
    for layer in layers.values():
        quantize = layer.group in chosen or ("all" in chosen and layer.weight is not None)
        reason = (
            ("constant weight" if layer.weight is not None else "asked for")
            if quantize
            else _HIGH.get(layer.group, "not asked for")
        )
        planned.append(
            PlannedLayer(layer.name, layer.group, precision if quantize else "high", reason, layer.macs)
        )
    plan = QuantPlan(precision, tuple(planned))
    if not plan.quantized:
        raise CalibrationError("the plan quantizes no layer; choose groups that the model has")
    return plan
