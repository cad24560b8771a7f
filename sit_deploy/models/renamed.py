"""Weights under timm's names, each of which is given once, and where in a file the names of another library stand."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sit_deploy.models.torch_file import Stored


class DoubleNameError(Exception):
    """Two weights that mean the same, under the names of two libraries; the text is timm's name.

    Attributes:
        library: whose names they have beside timm's, in words.
    """

    def __init__(self, name: str, library: str) -> None:
        super().__init__(name)
        self.library = library


def put(names: dict[str, Stored], name: str, value: Stored, library: str = "another library") -> None:
    """Take a weight under a name.

    Raises:
        DoubleNameError: there is one already, and which of them is meant cannot be told.
    """
    if name in names:
        raise DoubleNameError(name, library)
    names[name] = value


def roots(names: Iterable[str], pattern: str) -> set[str]:
    """Return the prefixes, with their dots, behind which a name is as a pattern says."""
    behind = re.compile(rf"(|.*\.){pattern}$")
    return {match[1] for match in map(behind.match, names) if match}
