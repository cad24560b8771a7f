"""The form of what check.py writes: what it calls itself, and which of its bundles are compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = 1
KIND = "sit-deploy check"  # what the JSON says it is
# narrower ones are compared with wider ones; 8 bits, which are not here, are the narrowest
_WIDTHS = {"fp32": 0, "fp16": 1, "bf16": 1}


def baseline(
    row: Mapping[str, Any], bundles: Sequence[Mapping[str, Any]], size: int
) -> Mapping[str, Any] | None:
    """Return the bundle that one is compared with: the next wider float type of the same model, engine and batch size.

    8 bits are held to 16, which they stand in for, and 16 to 32; None where there is no such bundle.
    """
    narrowest = len(_WIDTHS)
    mine = _WIDTHS.get(row["precision"], narrowest)
    others = [
        other
        for other in bundles
        if _WIDTHS.get(other["precision"], narrowest) < mine
        and all(other[key] == row[key] for key in ("model", "macs"))
        and other["engine"]["kind"] == row["engine"]["kind"]
        and any(latency["batch_size"] == size for latency in other["latencies"])
    ]
    return max(others, key=lambda other: _WIDTHS[other["precision"]], default=None)
