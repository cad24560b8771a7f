"""Streams of a GPU that is not there: work that is done when it is waited for, places in it, and what fails on misuse."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.helpers.fake_cuda import FakeGpu


class MisuseError(AssertionError):
    """The documented order of calls was not kept."""


class Error(Exception):
    """PyCUDA's root of driver errors."""


class Stream:
    """Work that waits. `handle` is what TensorRT is given."""

    def __init__(self, gpu: FakeGpu, flags: int) -> None:
        gpu.need_context("Stream")
        self.gpu, self.handle = gpu, 0x5000 + next(gpu._numbers)
        self.pending: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.invalid = False
        gpu.streams[self.handle] = self

    @property
    def works(self) -> bool:
        """Whether something is pending that touches memory; marks and waits for them do not."""
        return any(not isinstance(work, (Passed, Held)) for work in self.pending)

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.pending if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        self.gpu.need_context("synchronize")
        if self.captured is not None:
            self.invalid = True
            raise MisuseError("a stream was waited for while it captures")
        if self.gpu.fail_with:
            message = self.gpu.fail_with
            self.gpu.fail_with = "!" + message
            self.pending.clear()
            raise Error(message)
        while self.pending:
            if self.gpu.interleave:
                for other in list(self.gpu.streams.values()):
                    if other is not self:
                        other.step()
            self.pending.pop(0)()

    def step(self) -> None:
        """Do one thing, unless it has to wait for another stream."""
        held = self.pending and isinstance(self.pending[0], Held) and not self.pending[0].mark.passed
        if self.pending and not held:
            self.pending.pop(0)()


class Mark:
    """A place in a stream's work, which another stream or a thread can wait for."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.passed = stream, False
        stream.enqueue(Passed(self))

    def hold(self, stream: Stream) -> None:
        """Let what is enqueued next on a stream wait."""
        stream.enqueue(Held(self))

    def reach(self) -> None:
        """Do the work before it; another stream's turn at it may have come meanwhile."""
        while not self.passed:
            self.stream.pending.pop(0)()


class Passed:
    """The work of a mark: nothing but to be passed."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark

    def __call__(self) -> None:
        self.mark.passed = True


class Held:
    """The work of a stream that waits for a mark of another's."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark

    def __call__(self) -> None:
        self.mark.reach()


class Event:
    """A mark in a stream's work, timed when the work before it is done."""

    def __init__(self, gpu: FakeGpu, flags: int) -> None:
        gpu.need_context("Event")
        self.gpu = gpu
        self.seconds: float | None = None

    def record(self, stream: Stream) -> Event:
        self.gpu.need_context("Event.record")
        self.seconds = None

        def mark() -> None:
            self.seconds = time.perf_counter()

        stream.enqueue(mark)
        return self

    def time_till(self, later: Event) -> float:
        if self.seconds is None or later.seconds is None:
            raise MisuseError("the time of an event was asked for before it happened")
        return 1e3 * (later.seconds - self.seconds)
