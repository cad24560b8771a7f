"""Training: teachers by cross-entropy, and SiT students by Feature Recalibration Distillation (FRD) from them.

From the command line: `sit-deploy train`, or `torchrun … -m training` for several GPUs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.frd import FRDLoss, frd_loss
    from training.loop import train
    from training.recipes import Recipe
    from training.request import TrainRequest
    from training.summary import Summary
    from training.task import ClassificationTask, FRDTask
    from training.terminal_reporter import reporting

_LAZY = {
    "ClassificationTask": "task",
    "FRDLoss": "frd",
    "FRDTask": "task",
    "Recipe": "recipes",
    "Summary": "summary",
    "TrainRequest": "request",
    "frd_loss": "frd",
    "reporting": "terminal_reporter",
    "train": "loop",
}
__all__ = [
    "ClassificationTask",
    "FRDLoss",
    "FRDTask",
    "Recipe",
    "Summary",
    "TrainRequest",
    "frd_loss",
    "reporting",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"training.{_LAZY[name]}"), name)
