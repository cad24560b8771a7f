"""How a command is ended from outside: by Ctrl-C, by a signal of a supervisor or of a closed terminal, whatever Python does at that moment."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_MOMENT = 0.05  # seconds, in which a destructor ends


def heed_signals() -> None:
    """Take SIGTERM and SIGHUP for Ctrl-C, so that what is half-written goes; not where `nohup` or a supervisor has them ignored."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Have an interrupt that meets a destructor, where Python drops it, come again a moment later."""
    before = sys.unraisablehook

    def look(dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt or sys.is_finalizing():
            before(dropped)
            return
        # started in the background, a command has Ctrl-C ignored, and SIGTERM not
        number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
        again = threading.Timer(_MOMENT, _thread.interrupt_main, (number,))
        again.daemon = True
        again.start()

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before
