"""Schedules built on the real engine and timed against one of them, in turns: what the machine does to all of them divides out."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sit_deploy.latency.graphs import ScheduleGraphs
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.target import Target

if TYPE_CHECKING:
    from typing_extensions import Self

    from engines.base import EngineOrigin
    from engines.timing import TimingOptions
    from engines.worker import Slice, Worker

# Of a timing. Others on a machine only ever make a call slower, so of each slice its fastest call is taken; a machine's pace changes within
# seconds, so slices are short and many.
ROUNDS, SECONDS, WARM_UP = 9, 0.15, 0.3
WIDEST = 1.15  # times the lower quartile that the upper one may be: more says too little


@dataclass(frozen=True)
class Timed:
    """What a timing gave.

    Attributes:
        ratio: times that a schedule takes as long as the reference, by the fastest call of each slice: the median of the rounds.
        spread: half the distance of the quartiles, as a share of the ratio.
        reference_ms: milliseconds of the reference in the same rounds, the median of all calls.
        doubt: why it says nothing, as part of a sentence; None where it does.
    """

    ratio: float
    spread: float
    reference_ms: float
    doubt: str | None = None


class ScheduleBench:
    """Builds schedules of a model on its engine and times them, each in a process of its own. Use as a context manager.

    Args:
        target: model and engine, which runs here.
        reference: the schedule that the others are timed against. It runs in two processes beside every few, started before and after them: of
            several of the same engine those that started first were slower, by up to 7 %.
        folder: for files; made, and removed at the end.
    """

    def __init__(self, target: Target, reference: Schedule, folder: Path) -> None:
        self._target, self._reference, self._folder = target, reference, folder
        self._graphs = ScheduleGraphs(target)
        self._against: tuple[Path, EngineOrigin | None] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def time(self, schedules: Sequence[Schedule]) -> list[Timed]:
        """Build a few schedules and time them in the same rounds, which all of them are in memory for."""
        folders = [self._folder / str(number) for number in range(len(schedules))]
        made = [self._build(one, folder) for one, folder in zip(schedules, folders, strict=True)]
        try:
            return self._time(made)
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def time_engines(self, paths: Sequence[Path]) -> list[Timed]:
        """Time engines that were built of the same model, likewise."""
        return self._time([(path, None) for path in paths])

    def _time(self, made: Sequence[tuple[Path, EngineOrigin | None]]) -> list[Timed]:
        if self._against is None:
            self._against = self._build(self._reference, self._folder / "reference")
        workers: list[Worker] = []
        finished = False
        try:
            for path, origin in (self._against, *made, self._against):
                workers.append(self._start(path, origin))
            turns = take_turns(workers)
            finished = True
        finally:
            for worker in workers:
                worker.stop(gently=finished)
        before, *ours, after = turns
        return [timed(before, after, slices) for slices in ours]

    def _build(self, schedule: Schedule, folder: Path) -> tuple[Path, EngineOrigin]:
        import engines
        from sit_deploy.graph.write import write_graph

        runtime = self._target.runtime
        folder.mkdir()
        source, path = folder / "model.onnx", folder / runtime.filename
        write_graph(self._graphs.graph(schedule), source)
        info = runtime.build(source, path, engines.BuildOptions(threads=self._target.threads))
        source.unlink()
        return path, info.origin

    def _start(self, path: Path, origin: EngineOrigin | None) -> Worker:
        from engines.timing import engine_worker
        from engines.worker import Worker

        spec = engine_worker(self._target.engine, path, self._target.batch, self._options(), origin)
        return Worker(path.parent.name, spec, WARM_UP)

    def _options(self) -> TimingOptions:
        from engines.timing import TimingOptions

        return TimingOptions(ROUNDS, SECONDS, WARM_UP, threads=self._target.threads)


def take_turns(workers: Sequence[Worker]) -> list[list[Slice]]:
    """Return the slices of every worker, in rounds in which each has one."""
    turns: list[list[Slice]] = [[] for _ in workers]
    for _ in range(ROUNDS):
        for slices, worker in zip(turns, workers, strict=True):
            slices.append(worker.time(SECONDS))
    return turns


def timed(before: Sequence[Slice], after: Sequence[Slice], schedule: Sequence[Slice]) -> Timed:
    """Return what a schedule took of the time of the reference, in rounds that both were in.

    Args:
        before: slices of the reference, in each round before the schedule's.
        after: slices of its other process, behind them.
        schedule: its slices.
    """
    from engines.latency import percentile
    from engines.speedup import BUSY

    rounds = list(zip(before, after, schedule, strict=True))
    ratios = sorted(2 * min(c.seconds) / (min(a.seconds) + min(b.seconds)) for a, b, c in rounds)
    low, middle, high = (percentile(ratios, percent) for percent in (25, 50, 75))
    taken = [share for some in rounds for one in some if (share := one.others) is not None]
    doubt = None
    if taken and (busy := statistics.median(taken)) > BUSY:
        doubt = f"other programs took {busy:.0%} of the CPUs while engines were timed"
    elif high > WIDEST * low:
        doubt = f"half of the rounds lie between {low:.2f} and {high:.2f} times the reference"
    usual = 1e3 * statistics.median(statistics.median(theirs.seconds) for theirs in (*before, *after))
    return Timed(middle, (high - low) / 2 / middle, usual, doubt)
