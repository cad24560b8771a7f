"""What is timed in place of a PyTorch model where it is not the model that a test is about: importing PyTorch takes seconds."""

from __future__ import annotations

import time
from typing import Any


class IdleCall:
    """A worker's callable that takes whatever `TorchCall` takes, and sleeps."""

    last_gpu_seconds = None

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self) -> None:
        time.sleep(0.001)
