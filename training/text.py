"""Names of files as text."""

from __future__ import annotations

import os
from pathlib import Path


def text_of(name: str | Path) -> str:
    """Return a name as text that can be written anywhere; bytes that are no UTF-8 are spelt out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
