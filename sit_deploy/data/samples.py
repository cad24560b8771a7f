"""Samples of a data set, (image, label) pairs: a part of them, some evenly spread, and what to call one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sit_deploy.text import shown

Samples = Sequence[tuple[Any, int]]  # of (path or Pillow image, label)


def describe(samples: Sequence[Any], index: int) -> str:
    """Return what to call an image: its path, or what a data set without files says."""
    tell = getattr(samples, "describe", None)
    return tell(index) if tell else shown(samples[index][0])


class Subset(Sequence):
    """Some of a data set's samples, fetched when they are asked for."""

    def __init__(self, samples: Sequence[Any], indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[self._indices[index]]

    def describe(self, index: int) -> str:
        """Return what to call an image."""
        return describe(self._samples, self._indices[index])


class Placed(Subset):
    """Some of a data set's samples, with their labels and their places in it: by these it is known which of them were left out."""

    def __getitem__(self, index: Any) -> tuple[Any, tuple[int, int]]:
        source, label = super().__getitem__(index)
        return source, (label, self._indices[index])


class Kept(Placed):
    """As `Placed`, whose samples stay once they were fetched: a data set that is no list of files decodes its image for that.

    Attributes:
        fetched: (source, label) by place in the data set.
    """

    def __init__(self, samples: Sequence[Any], indices: Sequence[int]) -> None:
        super().__init__(samples, indices)
        self.fetched: dict[int, tuple[Any, int]] = {}

    def __getitem__(self, index: Any) -> tuple[Any, tuple[int, int]]:
        place = self._indices[index]
        if place not in self.fetched:
            self.fetched[place] = self._samples[place]
        source, label = self.fetched[place]
        return source, (label, place)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items, or all, evenly spread: a sorted data set then does not give one class only."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def spread_over(samples: Sequence[Any], count: int | None) -> Sequence[Any]:
    """Return `count` of the samples, evenly spread, or all: a sorted data set then does not give one class only."""
    if count is None or count >= len(samples):
        return samples
    if isinstance(samples, list):
        return spread(samples, count)
    return Subset(samples, spread(range(len(samples)), count))
