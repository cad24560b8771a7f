"""A figure as the text that stands on a page."""

from __future__ import annotations


def figure(value: float | None, form: str) -> str:
    """Return a figure, or a dash for none."""
    return "—" if value is None else format(value, form)
