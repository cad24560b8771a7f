"""A worker's callable that runs several batches a call, on no engine."""

from __future__ import annotations

import time


class SeveralCall:
    """Four batches of 5 ms a call, two at a time; it must be told to rest before it is asked whether it is quiet."""

    batches, in_flight = 4, 2

    def __call__(self) -> None:
        time.sleep(0.02)

    def rest(self) -> None:
        pass
