"""SIGINT and SIGTERM while a run can still save its state."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopSignal:
    """Takes note of SIGINT and SIGTERM while a run can still save its state; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.name = ""
        self.before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
