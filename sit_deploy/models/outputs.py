"""The outputs of a PyTorch model by name, as timm computes them: what every graph is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.forward import named_outputs
from sit_deploy.models.whole import WholeModel
from sit_deploy.outputs import CLS, DEFAULT, FEATURES, LOGITS, PATCHES, in_order


class ModelOutputs(nn.Module):
    """A model that gives outputs in place of logits: images (B, C, H, W) → a tensor, or several in the order of `OUTPUTS`.

    Args:
        model: one of ours, or of timm's with our forward (`models.forward`).
        names: of the outputs; see `check_outputs`.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = in_order(names)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return named_outputs(self.model, images, self.names)


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """Return what gives the named outputs of a model: itself, where that is its logits."""
    return model if tuple(names) == DEFAULT else ModelOutputs(model, names)


def default_outputs(model: Any) -> tuple[str, ...]:
    """Return what a model gives where nobody says: logits, or features where it has no classifier."""
    return DEFAULT if model.num_classes else (FEATURES,)


def check_outputs(model: Any, names: Sequence[str]) -> None:
    """Refuse outputs that a model has not.

    Raises:
        InputError: logits of a model without a classifier, the class token of one without, or tokens of one that is taken whole.
    """
    if isinstance(model, WholeModel) and {CLS, PATCHES}.intersection(names):
        raise InputError(
            "this model is taken as it is, and its tokens are not looked at; pass --outputs logits or features"
        )
    if LOGITS in names and not model.num_classes:
        raise InputError(
            "this model has no classifier (num_classes=0), and so no logits; pass --outputs features, or --num-classes for one with a "
            "head"
        )
    if CLS in names and getattr(model, "cls_token", None) is None:
        raise InputError(
            "this model has no class token: its head reads the patch tokens; pass --outputs features or patches"
        )
