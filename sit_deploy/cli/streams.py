"""Standard output and standard error while a command runs: which of them could not be written, and why."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class PipeBrokeError(Exception):
    """A pipe broke. As a BrokenPipeError, click would take it for that of our output and end with status 1, whoever's it was."""


class Stream:
    """A text stream that remembers what kept it from being written.

    Attributes:
        error: the first that there was.
    """

    error: OSError | None = None

    def __init__(self, stream: TextIO, *, needed: bool) -> None:
        """Watch a stream.

        Args:
            stream: it is written to.
            needed: errors go on to whoever writes; else the words are lost and the work goes on, unless it is their reader that has gone.
        """
        self._stream, self._needed = stream, needed

    def write(self, text: str) -> int:
        with self._watched():
            return self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        with self._watched():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    def close(self) -> None:
        """Leave it open: libraries close at the end what they took for a stream of their own (absl does), and it is the process's."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            if self._needed or error.errno == errno.EPIPE:
                raise
            self.drop()

    def drop(self) -> None:
        """Lose what waits to be written, and all that comes: at its end Python would try once more, and print a traceback."""
        with contextlib.suppress(OSError, ValueError):  # of a stream that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def watched() -> Iterator[tuple[Stream | None, Stream | None]]:
    """Give standard output and standard error, watched as long as the block lasts; None for one that is closed."""
    before = sys.stdout, sys.stderr
    out, err = (
        None if stream is None else Stream(stream, needed=needed)
        for stream, needed in zip(before, (True, False), strict=True)
    )
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Let a pipe that broke be told apart by whoever knows the streams.

    Raises:
        PipeBrokeError: in place of BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise PipeBrokeError(str(error)) from error
