"""A process that calls something for as long as it is told to, and waits in silence between: both ends of it."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import cpu, pace
from engines.cpu import usable_cpus
from engines.errors import EngineError, WorkerError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_UNTIMED_CALLS = 2  # at the start of a slice: the caches hold the other worker's data
_MIN_CALLS = 3  # in a slice, however slow a call is
_QUIET_WAIT_SECONDS = 2.0
_STOP_SECONDS = 10.0
_STEADY = 0.05  # share of its time that a slice may differ from the one before, warmed up
_LONGEST_WARM_UP = 8  # times the seconds asked for: a machine that others use is never steady


@dataclass(frozen=True)
class WorkerSpec:
    """A candidate to time.

    Attributes:
        factory: module-level callable, called with `args` in the worker; it returns a callable
            without arguments to time. If that has a `close()`, it is called at the end.
            It may have attributes: `last_gpu_seconds`, what its last call took on a GPU, transfers left out; `batches` that a
            call runs, and `in_flight`, how many of them at a time, and then a method `rest` that waits for those under way.
        batch_size: images a batch.
        cpus: CPUs to pin the worker to; None leaves it free.
    """

    factory: Callable[..., Callable[[], object]]
    args: tuple[Any, ...] = ()
    batch_size: int = 1
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Slice:
    """What a worker tells of a turn.

    Attributes:
        seconds: of each call, or a batch's share of one that runs several.
        gpu_seconds: of each call on the GPU; empty where there is none.
        others: share of its CPUs that other programs took; None where the system does not tell.
        pace: of fixed work in the same slice.
        quiet: whether its threads went idle after it.
    """

    seconds: list[float]
    gpu_seconds: list[float]
    others: float | None
    pace: pace.Pace
    quiet: bool


class Worker:
    """The parent's end of a worker process, started and warmed up."""

    def __init__(self, name: str, spec: WorkerSpec, warmup_seconds: float) -> None:
        self.name = name
        self.batch_size = spec.batch_size
        try:
            # Unpickled in the worker only once it ignores Ctrl-C: imports may take seconds.
            job = pickle.dumps((spec.factory, spec.args))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EngineError(
                f"worker {name}: the factory and its arguments must be picklable "
                f"(a module-level callable): {_one_line(error)}"
            ) from error
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, job, spec.cpus, warmup_seconds), daemon=True
        )
        self._process.start()
        try:
            theirs.close()
            self.threads, self.cpus, self.batches, self.in_flight = self._receive()
        except BaseException:
            self.stop(gently=False)
            raise

    def time(self, seconds: float) -> Slice:
        """Let the worker run for a slice."""
        try:
            self._connection.send(seconds)
        except OSError:
            raise self._died() from None
        told = Slice(*self._receive())
        if self.batches == 1:
            return told
        return replace(told, seconds=[took / self.batches for took in told.seconds])

    def stop(self, *, gently: bool) -> None:
        """End the process: let it close its engine, or do not wait for that."""
        self._connection.close()  # the worker's recv ends with EOFError
        if gently:
            self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        wait([self._connection, self._process.sentinel])
        try:
            # A last word may still be in the pipe of a process that has ended.
            if not self._connection.poll():
                raise EOFError
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "error":
            raise WorkerError(f"worker {self.name} failed: {value}", self.name)
        return value

    def _died(self) -> WorkerError:
        self._process.join(_STOP_SECONDS)
        status = self._process.exitcode
        if status is not None and status < 0:
            how = f"killed by {signal.Signals(-status).name} (out of memory?)"
        else:
            how = f"exit status {status}"
        return WorkerError(f"worker {self.name} died while it was being timed: {how}", self.name)


def _work(connection: Connection, job: bytes, cpus: tuple[int, ...] | None, warmup_seconds: float) -> None:
    """The worker process: build the callable, then run it for a slice whenever told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    call = None
    try:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        factory, args = pickle.loads(job)
        call = factory(*args)
        shape = (getattr(call, "batches", 1), getattr(call, "in_flight", 1))
        rest = getattr(call, "rest", lambda: None)
        _warm_up(call, warmup_seconds)
        rest()
        _become_quiet()
        connection.send(("value", (_thread_count(), usable_cpus(), *shape)))
        while True:
            seconds = connection.recv()
            _run(call, 0.0)
            allowed = usable_cpus() or range(os.cpu_count() or 1)
            before = cpu.use(allowed)
            timed = _run(call, seconds)
            taken = cpu.others_share(before, cpu.use(allowed))
            rest()
            # after the calls and not among them, whose caches and threads it would disturb; the CPU's clock is up by then
            beside = pace.run(seconds)
            connection.send(("value", (*timed, taken, beside, _become_quiet())))
    except (EOFError, BrokenPipeError):  # the parent has finished with us
        close = getattr(call, "close", None)
        if close is not None:
            close()
    except Exception as error:
        connection.send(("error", _one_line(error)))


def _warm_up(call: Callable[[], object], seconds: float) -> None:
    """Call for `seconds`, and on until a slice is as fast as the one before: caches, clocks and compilers have settled."""
    deadline = time.perf_counter() + _LONGEST_WARM_UP * seconds
    before = math.inf
    while True:
        now = statistics.median(_run(call, seconds / 2)[0])
        if (before != math.inf and abs(now - before) <= _STEADY * before) or time.perf_counter() >= deadline:
            return
        before = now


def _run(call: Callable[[], object], seconds: float) -> tuple[list[float], list[float]]:
    """Call until `seconds` have passed; the seconds each call took, and on the GPU, where it has one."""
    calls: list[float] = []
    on_gpu: list[float] = []
    least = _MIN_CALLS if seconds else _UNTIMED_CALLS
    start = time.perf_counter()
    before = start
    while before - start < seconds or len(calls) < least:
        call()
        after = time.perf_counter()
        calls.append(after - before)
        gpu_seconds = getattr(call, "last_gpu_seconds", None)
        if gpu_seconds is not None:
            on_gpu.append(gpu_seconds)
        before = time.perf_counter()
    return calls, on_gpu


def _become_quiet() -> bool:
    """Wait until this process's threads use no CPU; False if they still do at the deadline."""
    deadline = time.perf_counter() + _QUIET_WAIT_SECONDS
    while time.perf_counter() < deadline:
        used = time.process_time()
        time.sleep(0.02)
        if time.process_time() - used < 0.002:
            return True
    return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, EngineError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _thread_count() -> int | None:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else None
