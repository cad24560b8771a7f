"""Candidates of `runtime_peers.py` that were made before: making them takes most of a run, and no quiet machine."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.runtime_peers_cells import CANDIDATES, Candidate, Cell, Setting, prepare

_FILE = "cells.pickle"


class KeptCells:
    """The candidates of one model and batch size in a folder, each kept as soon as it is made.

    Args:
        folder: for their files and for what is kept of them. What is in it is taken as it is; delete it to make all anew.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        # of this script's own making, in a folder that its caller names
        self._state: dict[str, Any] = (
            pickle.loads(self._path.read_bytes()) if self._path.exists() else {"cells": {}}
        )

    def lacks(self, without: Collection[str]) -> bool:
        """Whether one that is wanted has still to be made."""
        wanted = {candidate.key for candidate in CANDIDATES} - set(without)
        return not wanted <= self._state["cells"].keys()

    def cell(self, candidate: Candidate) -> Cell | None:
        """Return a candidate that was made, or None."""
        found = self._state["cells"].get(candidate.key)
        return Cell(candidate, *found) if found else None

    def make(self, candidate: Candidate, setting: Setting) -> Cell:
        """Make a candidate and keep it, with what peers and the tuning told."""
        cell = prepare(candidate, setting)
        self._state["cells"][candidate.key] = (cell.skipped, cell.error, cell.worker)
        for what in ("told", "plans"):  # an earlier run may have added some
            self._state[what] = {**self._state.get(what, {}), **getattr(setting, what)}
        self._path.write_bytes(pickle.dumps(self._state))
        return cell

    def recall(self, told: dict[str, Any], plans: dict[tuple[str, int], str]) -> None:
        """Add what was told while they were made."""
        told |= self._state.get("told", {})
        plans |= self._state.get("plans", {})
