"""Training: so far the loss of Feature Recalibration Distillation (FRD); the training loop is not part of this release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.frd import FRDLoss, frd_loss

__all__ = ["FRDLoss", "frd_loss"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from training import frd

    return getattr(frd, name)
