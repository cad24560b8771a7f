"""How a speed-up is said: with its range and both times of the same rounds, or that it cannot be measured now.

Takes `engines.speedup.Speedup.to_dict()`, so that what was measured elsewhere is said alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_NOW = "not measurable now"
REMEDY = "close other programs and measure again, with more --rounds"


def of_build(speed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the speed-up of 8 bits that a build's report holds ("quantization", "speed") in the form of the others.

    An older report has no range and no doubt: its rounds have.
    """
    baseline, candidate = speed["p50_ms"].values()  # of `over` and of 8 bits, in this order
    times = {"baseline_ms": baseline, "candidate_ms": candidate}
    if "doubt" in speed:
        return {
            "median": speed["ratio"],
            **{key: speed.get(key) for key in ("low", "high", "doubt")},
            **times,
        }
    from engines.speedup import of_ratios

    return of_ratios(speed["per_round"], **times).to_dict()


def factor(found: Mapping[str, Any] | None) -> str:
    """Return the figure alone, for a table: "3.44×", or "?" where the rounds do not bear one out."""
    if found is None:
        return "—"
    return "?" if found["doubt"] else f"{found['median']:.2f}×"


def rounds(found: Mapping[str, Any]) -> str:
    """Return what stands behind the figure: "half of the rounds 3.31 to 3.52; 27.55 over 8.01 ms"."""
    return (
        f"half of the rounds {found['low']:.2f} to {found['high']:.2f}; {found['baseline_ms']:.2f} over "
        f"{found['candidate_ms']:.2f} ms"
    )


def sentence(subject: str, other: str, found: Mapping[str, Any], remedy: str = REMEDY) -> str:
    """Return "SUBJECT is 3.44× as fast as OTHER (...)", or that it cannot be told; without a full stop."""
    if found["doubt"]:
        return f"whether {subject} is faster than {other} is {NOT_NOW}: {found['doubt']}; {remedy}"
    return f"{subject} is {found['median']:.2f}× as fast as {other} ({rounds(found)})"
