"""The context slots of an open engine, lent out one call each: to a call that the slot has a CUDA graph for, if it can be."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.tensorrt.context import ContextSlot


class SlotPool:
    """Slots that wait for calls, the one that was used least recently first."""

    def __init__(self) -> None:
        self._free: list[ContextSlot] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """How many wait for a call."""
        return len(self._free)

    def add(self, slot: ContextSlot) -> None:
        """Take in a new slot."""
        self._count += 1
        self._free.append(slot)

    def take(self, shapes: Mapping[str, tuple[int, ...]] | None) -> ContextSlot | None:
        """Return a free slot, waiting for one; None once the pool is closed.

        Args:
            shapes: of the inputs. A slot that ran them last is preferred, since a slot holds the graph of one shape; else that
                of the least recent use is taken, so that the others keep theirs.
        """
        with self._changed:
            while not self._free and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            for index in range(len(self._free) - 1, -1, -1):
                if self._free[index].shapes == shapes:
                    return self._free.pop(index)
            return self._free.pop(0)

    def give_back(self, slot: ContextSlot) -> None:
        """End a call's use of a slot."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """Lend out no more, and wait for the calls that run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._free) < self._count:
                self._changed.wait()
