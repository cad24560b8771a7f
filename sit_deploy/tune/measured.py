"""What may be built, how fast it was, how far its logits are off, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

TIE = 1.03  # times as fast that is no difference yet
FLOAT = "fp32"  # what all others are timed against, and what their logits are compared with


@dataclass(frozen=True)
class Candidate:
    """What may be built: layers in 8 bits by groups, and what is beside them; or a float precision alone.

    Attributes:
        groups: in 8 bits (`calibration.layers.GROUPS`); none for a float engine.
        rest: the precision beside them, or that of the float engine.
        high: layers of the groups that stay high all the same, in the order in which they were taken back.
    """

    groups: frozenset[str] = frozenset()
    rest: str = FLOAT
    high: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether nothing is in 8 bits."""
        return not self.groups

    @property
    def key(self) -> str:
        """Its name in a file of timings, the same for the same."""
        return "|".join((",".join(sorted(self.groups)), self.rest, ",".join(self.high)))

    @classmethod
    def of(cls, key: str) -> Candidate:
        """Return the candidate of a key."""
        groups, rest, high = key.split("|")
        return cls(frozenset(filter(None, groups.split(","))), rest, tuple(filter(None, high.split(","))))


@dataclass(frozen=True)
class Timing:
    """How many times as fast as the float32 engine, in alternated rounds.

    Attributes:
        ratio, low, high: median of the rounds' ratios, with quartiles.
        ms: its own median, in milliseconds a batch.
        noise: why the rounds say nothing, as part of a sentence; None where they do.
    """

    ratio: float
    low: float
    high: float
    ms: float
    noise: str | None = None

    @property
    def usable(self) -> bool:
        """Whether a decision may rest on it."""
        return self.noise is None and 0 < self.ratio < math.inf


@dataclass(frozen=True)
class LogitsError:
    """How far logits are off those of the float32 graph.

    Attributes:
        power: of the difference over that of the logits; 0 where they are the same.
        tolerated: within what a build allows of any single logit.
    """

    power: float
    tolerated: bool = True

    @property
    def sqnr_db(self) -> float:
        """Power of the logits over that of the difference, in dB; infinite where there is none."""
        return -10 * math.log10(self.power) if self.power > 0 else math.inf


@dataclass(frozen=True)
class Measured:
    """A candidate with what was measured of it.

    Attributes:
        error: None where it was not worth measuring: adding to the error and gaining no time.
        drop: points of top-1 lost on labelled images, where that was asked.
    """

    candidate: Candidate
    timing: Timing
    error: LogitsError | None = None
    drop: float | None = field(default=None, compare=False)

    @property
    def usable(self) -> bool:
        """Whether it may be chosen."""
        return self.timing.usable and self.error is not None and self.error.tolerated

    @property
    def cost(self) -> float:
        """Its time, in those of the float32 engine."""
        return 1 / self.timing.ratio


def is_tie(one: Measured, other: Measured) -> bool:
    """Whether two are as fast as each other: within 3 %, or the quartiles of one over the other lie on both sides of 1."""
    a, b = one.timing, other.timing
    return 1 / TIE <= a.ratio / b.ratio <= TIE or a.low / b.high < 1 < a.high / b.low


def pareto_front(measured: Iterable[Measured]) -> list[Measured]:
    """Return those that no other is both faster and more accurate than, the fastest first."""
    front: list[Measured] = []
    for one in sorted(filter(_decides, measured), key=lambda m: (-m.timing.ratio, m.error.power)):
        if not front or one.error.power < front[-1].error.power:
            front.append(one)
    return front


def _decides(one: Measured) -> bool:
    return one.usable


def most_are_noise(measured: Collection[Measured]) -> bool:
    """Whether half of what was timed says nothing, so that what the rest says is luck."""
    noisy = sum(not one.timing.usable for one in measured)
    return noisy > 0 and 2 * noisy >= len(measured)
