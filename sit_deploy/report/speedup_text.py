"""How a measured speed-up is said: with its range and both times of the same rounds, or that it cannot be measured here now.

The figures are `engines.speedup.Speedup`, or what a report of another machine holds of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sit_deploy.text import first_of

NOT_NOW = "not measurable here now"
REMEDY = "close other programs and measure again, with more --rounds, or fewer --threads than CPUs"


class SpeedupFigures(Protocol):
    """A speed-up as `engines.speedup.Speedup` has it; without figures there is a doubt."""

    @property
    def median(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def baseline_ms(self) -> float: ...
    @property
    def candidate_ms(self) -> float: ...
    @property
    def doubt(self) -> str | None: ...


def factor(speedup: SpeedupFigures | None) -> str:
    """Return the figure alone, for a table: "3.44×", or "?" where the rounds do not bear one out."""
    if speedup is None:
        return "—"
    return "?" if speedup.doubt is not None else f"{speedup.median:.2f}×"


def rounds(speedup: SpeedupFigures) -> str:
    """Return what stands behind the figure: "half of the rounds 3.31 to 3.52; 27.55 over 8.01 ms"."""
    return (
        f"half of the rounds {speedup.low:.2f} to {speedup.high:.2f}; {speedup.baseline_ms:.2f} over "
        f"{speedup.candidate_ms:.2f} ms"
    )


def sentence(subject: str, other: str, speedup: SpeedupFigures, remedy: str = REMEDY) -> str:
    """Return "SUBJECT is 3.44× as fast as OTHER (...)", or that it cannot be told; without a full stop."""
    if speedup.doubt is not None:
        return f"whether {subject} is faster than {other} is {NOT_NOW}: {speedup.doubt}; {remedy}"
    return f"{subject} is {speedup.median:.2f}× as fast as {other} ({rounds(speedup)})"


def time_doubt(speedups: Mapping[str, SpeedupFigures]) -> str | None:
    """Return why the times of the stages may mean little, in one sentence; None where the rounds bear them out."""
    doubts = list(dict.fromkeys(gain.doubt for gain in speedups.values() if gain.doubt))
    if not doubts:
        return None
    return f"Take the times with care: {first_of(doubts)}."
