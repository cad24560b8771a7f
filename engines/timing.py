"""Latency, measured so that a comparison can be believed.

The idle threads of an inference runtime keep spinning for a while, and in one process they slow
whatever runs next. So every candidate gets a process of its own, and the processes take turns:
A B A B, one slice each. A worker answers at the end of its slice only once its threads have gone
quiet. Machines drift (heat, neighbours), so candidates are compared within a round.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import cpu
from engines.errors import EngineError
from engines.latency import Histogram, LatencyStats
from engines.pace import Pace
from engines.registry import get
from engines.worker import Worker, WorkerSpec

if TYPE_CHECKING:
    import numpy as np

    from engines.base import EngineOrigin, Progress
    from engines.runner import Runner


@dataclass(frozen=True)
class TimingOptions:
    """How candidates are timed, and on what they run.

    Attributes:
        rounds: turns of each candidate.
        seconds: length of a turn.
        warmup_seconds: untimed running of each before the first turn, and on until its times are steady.
        threads: CPU threads of each; None leaves the choice to the runtime.
        device: "cpu", "cuda" or "cuda:N"; None is what an engine is for.
        cpus: CPUs to pin each to; None leaves them free.
    """

    rounds: int = 5
    seconds: float = 1.0
    warmup_seconds: float = 1.0
    threads: int | None = None
    device: str | None = None
    cpus: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number; how large they may be says what times.

        Raises:
            EngineError: names the field.
        """
        numbers = {"rounds": Integral, "seconds": Real, "warmup_seconds": Real, "threads": Integral}
        for name, kind in numbers.items():
            value = getattr(self, name)
            if value is None and name == "threads":
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
                what = "a whole number" if kind is Integral else "a number"
                raise EngineError(
                    f"{name} of a timing must be {what}, got {value!r}; pass for example {name}=2"
                )
        cpus = self.cpus if isinstance(self.cpus, Collection) else ()
        if self.cpus is not None and (not cpus or not all(isinstance(cpu, Integral) for cpu in cpus)):
            raise EngineError(
                f"cpus of a timing must be whole numbers, got {self.cpus!r}; pass for example cpus=(0, 1)"
            )


@dataclass(frozen=True)
class WorkerResult:
    """What a worker measured.

    Attributes:
        stats: over every timed call of every round.
        round_medians_ms: the median latency of each round.
        threads: threads of the worker's process after warm-up, main thread included; None where
            the system does not tell.
        cpus: the CPUs it was allowed to run on; None where the system does not tell.
        quiet: its threads went idle after every slice; if not, they may have slowed the others.
        gpu: the same calls by the GPU's own clock, transfers left out; None where there is no GPU.
        gpu_round_medians_ms: the median of each round by that clock.
        histogram: of every timed call.
        others: of each round, the share of its CPUs that other programs took; 0 where some of them were idle, and
            nothing where the system does not tell.
        pace: of each round, the rate of a loop of fixed work in the same slice, as a share of its fastest lap of the whole
            run on this machine, whichever worker's it was; nothing where it was not taken.
        in_flight: batches that were run at a time; all times are then a batch's share of them.
    """

    stats: LatencyStats
    round_medians_ms: tuple[float, ...]
    threads: int | None
    cpus: tuple[int, ...] | None
    quiet: bool
    gpu: LatencyStats | None = None
    gpu_round_medians_ms: tuple[float, ...] = ()
    histogram: Histogram | None = None
    others: tuple[float, ...] = ()
    pace: tuple[float, ...] = ()
    in_flight: int = 1


@dataclass(frozen=True)
class Machine:
    """Where a measurement was made; `load_average` is the last minute's, if known."""

    cpu_model: str
    logical_cpus: int
    usable_cpus: int
    load_average: float | None = field(default=None, compare=False)


def machine() -> Machine:
    """Describe this machine."""
    logical = os.cpu_count() or 1
    return Machine(
        cpu_model=cpu.model_name(),
        logical_cpus=logical,
        usable_cpus=cpu.cpu_count(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def alternate(
    workers: Mapping[str, WorkerSpec],
    timing: TimingOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, WorkerResult]:
    """Time the workers turn about, each in a process of its own.

    The processes are spawned, so a calling script needs `if __name__ == "__main__":`.

    Args:
        workers: candidates by name, timed in this order within each round. What they run on is in them.
        timing: the turns and their length.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        WorkerError: a worker failed or died (its own words, on one line).
        EngineError: bad arguments.
    """
    timing = timing or TimingOptions()
    if not workers or timing.rounds < 1 or timing.seconds <= 0 or timing.warmup_seconds < 0:
        raise EngineError(
            "timing needs at least one worker, one round, a positive time a round and no negative "
            f"warm-up; got {len(workers)} workers, {timing.rounds} rounds, {timing.seconds} s a round, "
            f"{timing.warmup_seconds} s of warm-up"
        )
    total = len(workers) * (1 + timing.rounds)
    running: dict[str, Worker] = {}
    finished = False
    try:
        for done, (name, spec) in enumerate(workers.items()):
            if progress:
                progress(f"starting {name}", done, total)
            running[name] = Worker(name, spec, timing.warmup_seconds)
        results = take_turns(running, timing, progress)
        finished = True
    finally:
        for worker in running.values():
            worker.stop(gently=finished)
    if progress:
        progress("timing", total, total)
    return results


def take_turns(
    running: Mapping[str, Worker], timing: TimingOptions, progress: Progress | None = None
) -> dict[str, WorkerResult]:
    """Time workers turn about that have been started, and stay so.

    Args:
        running: candidates by name, timed in this order within each round.
        timing: the turns and their length.
        progress: as of `alternate`.

    Raises:
        WorkerError: a worker failed or died.
    """
    total = len(running) * (1 + timing.rounds)
    samples: dict[str, list[list[float]]] = {name: [] for name in running}
    gpu_samples: dict[str, list[list[float]]] = {name: [] for name in running}
    others: dict[str, list[float]] = {name: [] for name in running}
    paces: dict[str, list[Pace]] = {name: [] for name in running}
    quiet = dict.fromkeys(running, True)
    for turn in range(timing.rounds):
        for place, (name, worker) in enumerate(running.items()):
            if progress:
                progress(f"timing {name}", len(running) * (1 + turn) + place, total)
            told = worker.time(timing.seconds)
            samples[name].append(told.seconds)
            others[name] += [] if told.others is None else [told.others]
            paces[name].append(told.pace)
            if told.gpu_seconds:
                gpu_samples[name].append(told.gpu_seconds)
            quiet[name] = quiet[name] and told.quiet
    fastest = min(pace.fastest for turns in paces.values() for pace in turns)
    return {
        name: WorkerResult(
            stats=_stats(samples[name], worker.batch_size),
            round_medians_ms=_medians_ms(samples[name]),
            threads=worker.threads,
            cpus=worker.cpus,
            quiet=quiet[name],
            gpu=_stats(gpu_samples[name], worker.batch_size) if gpu_samples[name] else None,
            gpu_round_medians_ms=_medians_ms(gpu_samples[name]),
            histogram=Histogram.from_seconds([second for slice_ in samples[name] for second in slice_]),
            others=tuple(others[name]),
            pace=tuple(pace.of(fastest) for pace in paces[name]),
            in_flight=worker.in_flight,
        )
        for name, worker in running.items()
    }


def _stats(slices: list[list[float]], batch_size: int) -> LatencyStats:
    return LatencyStats.from_rounds(slices, batch_size)


def _medians_ms(slices: list[list[float]]) -> tuple[float, ...]:
    return tuple(1e3 * statistics.median(slice_) for slice_ in slices)


def random_feeds(runner: Runner, batch_size: int) -> dict[str, np.ndarray]:
    """Return a random batch for an open engine; `batch_size` fills an open dimension."""
    import numpy as np

    random = np.random.default_rng(0)
    return {
        spec.name: _random(random, [batch_size if size is None else size for size in spec.shape], spec.dtype)
        for spec in runner.inputs
    }


def _random(random: Any, shape: list[int], dtype: str) -> Any:
    """Pixels for an engine that takes bytes, else values as normalised images have them."""
    if dtype == "uint8":
        return random.integers(0, 256, shape, dtype)
    return random.standard_normal(shape).astype(dtype)


class EngineCall:
    """A worker's callable that runs an engine on one random batch.

    Args (all picklable): as for `engines.get` and `Engine.load`; `batch_size` fills an open batch.
    """

    def __init__(
        self,
        kind: str,
        engine_path: Path,
        batch_size: int = 1,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> None:
        self._runner = get(kind).load(engine_path, threads=threads, device=device, origin=origin)
        self._feeds = random_feeds(self._runner, batch_size)

    @property
    def last_gpu_seconds(self) -> float | None:
        return getattr(self._runner, "last_gpu_seconds", None)

    def __call__(self) -> None:
        self._runner.infer(self._feeds)

    def close(self) -> None:
        self._runner.close()


class ThroughputCall:
    """A worker's callable that keeps an engine opened for throughput busy: `in_flight` batches at a time, never fewer.

    A call returns when `batches` more are done. All requests run one random batch.

    Attributes:
        in_flight: batches at a time: what the open engine takes.
        batches: done a call.

    Args (all picklable): as for `engines.timing.EngineCall`, and `streams` as for `Engine.load_for_throughput`.
    """

    def __init__(
        self,
        kind: str,
        engine_path: Path,
        batch_size: int = 1,
        threads: int | None = None,
        streams: int | None = None,
        origin: EngineOrigin | None = None,
    ) -> None:
        self._runner: Runner = get(kind).load_for_throughput(
            engine_path, threads=threads, streams=streams, origin=origin
        )
        self._feeds = random_feeds(self._runner, batch_size)
        self.in_flight = self._runner.at_once
        # a turn of all streams, which may end together: the time of one of them says nothing
        self.batches = self.in_flight
        self._pool = ThreadPoolExecutor(self.in_flight, thread_name_prefix="request")
        self._pending: deque[Future[dict[str, np.ndarray]]] = deque()

    def __call__(self) -> None:
        for _ in range(self.batches):
            while len(self._pending) < self.in_flight:
                self._pending.append(self._pool.submit(self._runner.infer, self._feeds))
            self._pending.popleft().result()

    def rest(self) -> None:
        """Wait for what is in flight."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        self.rest()
        self._pool.shutdown()
        self._runner.close()


def throughput_worker(
    kind: str,
    engine_path: Path,
    batch_size: int,
    timing: TimingOptions,
    streams: int | None = None,
    origin: EngineOrigin | None = None,
) -> WorkerSpec:
    """The candidate that is a built engine opened for throughput and kept busy; a time is a batch's share of it.

    Args:
        kind: of the engine.
        engine_path: of the engine.
        batch_size: images a batch; fills an open one.
        timing: what it runs on: threads and CPUs.
        streams: as for `Engine.load_for_throughput`.
        origin: how it was built, as for `Engine.load`.
    """
    job = (kind, engine_path.absolute(), batch_size, timing.threads, streams, origin)
    return WorkerSpec(ThroughputCall, job, batch_size, timing.cpus)


def engine_worker(
    kind: str,
    engine_path: Path,
    batch_size: int,
    timing: TimingOptions,
    origin: EngineOrigin | None = None,
) -> WorkerSpec:
    """The candidate that is a built engine, run on random batches.

    Args:
        kind: of the engine.
        engine_path: of the engine.
        batch_size: images a call; fills an open batch.
        timing: what it runs on: threads, device, CPUs.
        origin: how it was built, as for `Engine.load`.
    """
    job = (kind, engine_path.absolute(), batch_size, timing.threads, timing.device, origin)
    return WorkerSpec(EngineCall, job, batch_size, timing.cpus)
