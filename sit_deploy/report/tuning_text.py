"""How a plan that was chosen by measuring is said."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def plan_text(groups: Sequence[str], rest: str, high: int = 0, default: Collection[str] = ()) -> str:
    """Return a plan in words: "default, stem; rest bf16", or a float precision alone.

    Args:
        groups: in 8 bits; none for a float engine.
        rest: beside them.
        high: how many of their layers stay high all the same.
        default: the groups that "default" stands for.
    """
    if not groups:
        return rest
    inside, missing = set(groups), sorted(set(default) - set(groups))
    others = sorted(inside - set(default))
    if default and not missing:
        words = ", ".join(["default", *others])
    elif default and len(missing) <= 2 and len(missing) < len(default):
        words = ", ".join([f"default without {' and '.join(missing)}", *others])
    else:
        words = ", ".join(sorted(inside))
    less = f", less {high} layer{'s' if high != 1 else ''}" if high else ""
    return f"{words}{less}; rest {rest}"


def factor_text(ratio: float) -> str:
    """Return "2.31×"."""
    return f"{ratio:.2f}×"


def range_text(ratio: float, low: float, high: float) -> str:
    """Return a factor with its quartiles: "2.31× (2.28–2.35)"."""
    return f"{factor_text(ratio)} ({low:.2f}–{high:.2f})"
