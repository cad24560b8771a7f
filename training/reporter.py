"""How a run is watched while it goes on: what a command line or a program is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from training.progress import Progress

if TYPE_CHECKING:
    from training.slim_fit import Fit


class Reporter(Protocol):
    """How a run is watched; of the main process only."""

    def note(self, text: str) -> None:
        """Say a sentence."""

    def warn(self, text: str) -> None:
        """Say what should be looked at."""

    def steps(self, progress: Progress, loss: float) -> None:
        """Show the steps that are done."""

    def calibrating(self, done: int, total: int) -> None:
        """Show the images that activations have been observed on."""

    def fitting(self, share: float, step: int, loss: float) -> None:
        """Show the share that is done of fitting TSMs, the steps taken, and the loss of the last."""

    def fitted(self, fit: Fit) -> None:
        """Show what fitting TSMs did, at its end."""

    def evaluating(self, done: int, total: int) -> None:
        """Show the batches of held-out images that are done."""

    def epoch(self, row: dict[str, Any], progress: Progress) -> None:
        """Show the figures of an epoch; epoch 0 is the start."""


class Silent:
    """A reporter that shows nothing."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def steps(self, progress: Progress, loss: float) -> None: ...
    def calibrating(self, done: int, total: int) -> None: ...
    def fitting(self, share: float, step: int, loss: float) -> None: ...
    def fitted(self, fit: Fit) -> None: ...
    def evaluating(self, done: int, total: int) -> None: ...
    def epoch(self, row: dict[str, Any], progress: Progress) -> None: ...
