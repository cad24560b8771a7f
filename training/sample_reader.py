"""Reading samples of which some are damaged: one image must not end a run, and too many of them must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sit_deploy.data.damaged import too_many
from sit_deploy.errors import InputError
from sit_deploy.text import short_reason


class SampleReader:
    """Samples of a data set, of which some may not be readable.

    Attributes:
        samples: (Pillow image, label) by number, with `describe`.
        limit: how many may be damaged.
        damaged: flags of those that are, bool (n,), which all workers share.
    """

    def __init__(self, samples: Any, limit: int, damaged: Tensor | None = None) -> None:
        self.samples, self.limit = samples, limit
        own = torch.zeros(len(samples), dtype=torch.bool).share_memory_() if damaged is None else damaged
        self.damaged: Tensor = own

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, transform: Callable[[Any], Any] = lambda image: image) -> tuple[Any, int]:
        """Return a sample, transformed, or, where that is not to be had of its image, the next one that is whole.

        Raises:
            InputError: more than `limit` images are damaged, or all.
        """
        for step in range(len(self.samples)):
            place = (index + step) % len(self.samples)
            fault = "read"
            try:
                image, label = self.samples[place]
                fault = "read or augmented"
                return transform(image), label
            except Exception as error:  # of any type, from a decoder or an operation
                self.note_damaged(place, error, fault)
                last = short_reason(error)
        raise InputError(
            f"none of the {len(self.samples)} images can be {fault}; the last: {self.samples.describe(place)} ({last})"
        )

    def note_damaged(self, index: int, error: Exception, fault: str) -> None:
        """Take note that an image cannot be used.

        Args:
            index: of the image.
            error: what came of it.
            fault: what it cannot be, for the message: "read".

        Raises:
            InputError: it is one too many.
        """
        self.damaged[index] = True
        count = int(self.damaged.sum())
        if count > self.limit:
            raise too_many(count, fault, self.limit, self.samples.describe(index), error) from None
