"""How far a run has come, and how long it has still to go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run is: step of the `steps` of epoch of `epochs`.

    Attributes:
        left: seconds to go, None where it cannot be told yet.
        rate: images a second, over all processes, of this epoch; None before its first step.
        waiting: share of its time that was spent waiting for images.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    left: float | None
    rate: float | None = None
    waiting: float = 0.0

    @property
    def text(self) -> str:
        """For a line of output: epoch 3/12, step 40/310, 2 min 10 s left."""
        parts = [f"epoch {self.epoch}/{self.epochs}"]
        if self.epoch:
            parts.append(f"step {self.step}/{self.steps}")
        if self.left is not None and (self.epoch, self.step) != (self.epochs, self.steps):
            parts.append(f"{duration(self.left)} left")
        return ", ".join(parts)


class Pace:
    """How long a step and a pass over the held-out images take, measured in this process.

    What is measured first has the start of workers, compilers and memory in it, and counts until there is more.
    """

    def __init__(self) -> None:
        self.steps = self.passes = 0
        self.training = self.validating = 0.0
        self._first: tuple[int, float] | None = None

    def trained(self, steps: int, seconds: float) -> None:
        if self._first is None:
            self._first = (steps, seconds)
        else:
            self.steps, self.training = self.steps + steps, self.training + seconds

    def validated(self, seconds: float) -> None:
        self.passes, self.validating = self.passes + 1, self.validating + seconds

    @property
    def step(self) -> float | None:
        """Seconds of a step; None before any."""
        steps, seconds = (self.steps, self.training) if self.steps else self._first or (0, 0.0)
        return seconds / steps if steps else None

    @property
    def validation(self) -> float | None:
        """Seconds of a pass over the held-out images; None before any."""
        return self.validating / self.passes if self.passes else None

    def left(self, steps: int, passes: int) -> float | None:
        """Return the seconds that so many steps and passes will take; None before any step."""
        return None if self.step is None else steps * self.step + passes * (self.validation or 0.0)


def duration(seconds: float) -> str:
    """Return a time for people, in its two largest units: 5 s, 2 min 10 s, 3 h 5 min, 2 d 4 h."""
    left = max(0, round(seconds))
    for size, name, below, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            return f"{left // size} {name} {left % size // below} {part}"
    return f"{left} s"
