"""What a run is going to do, said before its first step: images, steps, epochs, learning rates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from training.optimizer import rates_of
from training.recipes import Recipe

FEW_STEPS = 50  # with fewer in all, hardly anything is learnt
SMALLEST_BATCH = 8  # images; BatchNorm's statistics are poor with fewer


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        images: to train on.
        batch: images of one step, over all processes.
        batch_size: of one pass of one of them.
        epochs: with those of the cool-down.
        steps: in all.
        peak, floor: learning rates.
    """

    images: int
    batch: int
    batch_size: int
    repeats: int
    steps_per_epoch: int
    epochs: int
    cooldown_epochs: int
    steps: int
    peak: float
    floor: float

    @classmethod
    def of(cls, recipe: Recipe, images: int, batch: int, steps_per_epoch: int) -> Plan:
        """Return the plan of a recipe on so many images, `batch` of them a step."""
        epochs = recipe.epochs + recipe.cooldown_epochs
        rates = rates_of(recipe, batch)
        return cls(
            images, batch, recipe.batch_size, recipe.repeats, steps_per_epoch, epochs, recipe.cooldown_epochs, epochs * steps_per_epoch,
            rates.peak, rates.floor,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """Say it in a line."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        steps = "1 step" if self.steps_per_epoch == 1 else f"{self.steps_per_epoch} steps"
        seen = min(self.images, -(-self.steps_per_epoch * self.batch // self.repeats))
        views = f", {self.repeats} views each of {seen} of them" if self.repeats > 1 else ""
        cooldown = (
            f" ({self.cooldown_epochs} of them at the smallest learning rate, --cooldown-epochs)"
            if self.cooldown_epochs
            else ""
        )
        return (
            f"{self.images} images to train on, {self.batch} a step: {steps} an epoch{views}; {epochs}{cooldown}: "
            f"{self.steps} steps in all; learning rate {self.peak:.3g} to {self.floor:.3g}"
        )

    def warning(self) -> str | None:
        """Say that it is too short to learn from, and what would make it longer; None where it is not."""
        if self.steps >= FEW_STEPS:
            return None
        enough = -(-FEW_STEPS // max(self.steps, 1))
        ways = "more --epochs"
        size = max(SMALLEST_BATCH, self.batch_size // enough & ~1)  # even, for mixup's pairs
        if size < self.batch_size:
            steps = self.epochs * (self.images // (size * self.batch // self.batch_size))
            ways = f"a smaller --batch-size (with {size} there are {steps}) or {ways}"
        count = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return f"{count} in all will hardly train anything: pass {ways}"
