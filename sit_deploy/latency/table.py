"""The latency table of a model on an engine: a few dozen token schedules, timed; all others, predicted."""

from __future__ import annotations

import datetime
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic as clock
from typing import TYPE_CHECKING, Protocol

from sit_deploy.errors import GateError, InputError
from sit_deploy.latency.bench import ROUNDS, ScheduleBench, Timed
from sit_deploy.latency.parts import Part, PartTimes, Widths
from sit_deploy.latency.probes import candidates, next_probes, reference_schedule
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.table_file import MEASURE_AGAIN, Probe, Section, read_sections, write_section
from sit_deploy.latency.target import Target, Where

if TYPE_CHECKING:
    from engines.base import Progress

SECONDS = 160.0  # that measuring takes by default
PROBES = 24  # schedules that are timed by default: more tell little that the machine's noise does not hide
ENOUGH = 8  # below which parts cannot be told from one another
_AT_ONCE = 4  # in memory beside two of the reference
# share of a time that an engine differs by from process to process, however long it is timed: what the timings themselves say, of these
_APART = (0.008, 0.01, 0.012, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07, 0.1)
_USUALLY_APART = 0.012  # while there are too few of them
_ANOTHER = "give a latency-PRECISION.json of a folder that `sit-deploy search` wrote"
_SIGMAS = 2.0  # standard deviations of an error bar: 95 of 100 are within


@dataclass(frozen=True)
class Prediction:
    """The latency of a schedule.

    Attributes:
        ms: milliseconds a batch.
        error: milliseconds that the engine in a process of its own may well differ by, either way (two standard deviations of what is unknown
            and of what processes differ by).
        parts: what it is the sum of.
    """

    ms: float
    error: float
    parts: tuple[Part, ...] = ()


class Bench(Protocol):
    """What times schedules: `ScheduleBench`, or a stand-in with a clock of its own."""

    def time(self, schedules: Sequence[Schedule]) -> list[Timed]:
        """Time a few schedules in the same rounds."""


MakeBench = Callable[[Target, Schedule, Path], AbstractContextManager[Bench]]


class LatencyTable:
    """What was timed of a model on an engine, and what that says of any schedule of it.

    Made by `measure` or `load`.

    Args:
        target: the model and its engine.
        section: what was timed.
    """

    def __init__(self, target: Target, section: Section) -> None:
        self.target, self._section = target, section

    @classmethod
    def measure(
        cls,
        target: Target,
        *,
        path: Path | None = None,
        seconds: float = SECONDS,
        schedules: Iterable[Schedule] = (),
        progress: Progress | None = None,
        bench: MakeBench = ScheduleBench,
    ) -> LatencyTable:
        """Time schedules on the engine until their parts are known, or the seconds are used up.

        Engines are timed in spawned processes: a script that calls this needs `if __name__ == "__main__":`.

        Args:
            target: the model and its engine, which runs here.
            path: a file of tables: what it has of the same is taken over, and it is written after every few timings, so that a
                measurement that is stopped goes on where it was.
            seconds: that it may take; the first few timings are taken in any case.
            schedules: that matter most; any by default.
            progress: called with a step, how far it has come and how far it goes.
            bench: what times schedules.

        Raises:
            InputError: a model that does not slim, a precision that the engine does not have, an engine that does not run here, or a
                damaged file.
            GateError: others use the machine, so that no time says anything.
            engines.EngineError: an engine cannot be built or run.
        """
        target.check()
        if not target.runs_here:
            raise InputError(
                f"{target.runtime.title} does not run here ({target.runtime.probe().reason}), so nothing can be timed on it; give a "
                "table that was measured where it runs, or choose another engine"
            )
        table = cls(target, _opened(target, path))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "schedules"
            with bench(target, reference_schedule(target.widths), place) as timer:
                _Measuring(table, timer, path, progress or (lambda *_: None)).run(seconds, tuple(schedules))
        return table

    @classmethod
    def load(cls, path: Path, target: Target) -> LatencyTable:
        """Return the table of a model and its engine from a file.

        One that was measured here is taken; where the engine does not run here, that of another machine, if there is only one.

        Args:
            path: the file.
            target: the model and its engine.

        Raises:
            InputError: no such file, a damaged one, or none of its tables is of that model, engine, precision, batch and threads:
                says what differs.
        """
        target.check()
        tables, what = read_sections(path, _ANOTHER), target.what
        fitting = [one for one in tables if one.what == what and len(one.probes) >= _enough(target)]
        for one in fitting:
            _check_probes(one, target, path, _ANOTHER)
        if not fitting:
            nearest = min((what.differences(one.what) for one in tables), key=len, default=[])
            why = (
                f"the nearest is of {'; '.join(nearest)}"
                if nearest
                else "one was begun; go on measuring it"
                if tables
                else "it is empty"
            )
            raise InputError(f"{path} has no latency table of {target}: {why}")
        if target.runs_here:
            here = target.here
            mine = [one for one in fitting if one.where == here]
            if not mine:
                raise InputError(
                    f"{path} has no latency table that was measured here ({here}), but on {fitting[0].where}; times of another machine are "
                    "not those of this one: measure them here"
                )
            return cls(target, mine[0])
        if len(fitting) > 1:
            machines = "; ".join(str(one.where) for one in fitting)
            raise InputError(
                f"{path} has latency tables of several machines ({machines}); give a file with one"
            )
        return cls(target, fitting[0])

    def save(self, path: Path) -> None:
        """Write the table into a file, beside those of other circumstances.

        Raises:
            InputError: the file is there, and damaged.
            engines.EngineError: it cannot be written.
        """
        write_section(path, self._section)

    @property
    def measured_on(self) -> Where:
        """The machine that it was measured on."""
        return self._section.where

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What was timed."""
        return tuple(self._section.probes)

    @property
    def wanted(self) -> int:
        """How many schedules are timed where the seconds suffice."""
        return min(PROBES, len(_pool(self.target.widths)))

    @property
    def reference(self) -> Schedule:
        """The schedule that all others were timed against."""
        return reference_schedule(self.target.widths)

    @property
    def reference_ms(self) -> float:
        """Its milliseconds a batch, the median of all that it was timed beside."""
        return statistics.median(probe.reference_ms for probe in self._section.probes)

    def predict(self, stage_blocks: Sequence[int], kept: Sequence[int]) -> Prediction:
        """Return the latency of a schedule.

        Args:
            stage_blocks: blocks of each stage.
            kept: patch tokens of each stage.

        Raises:
            InputError: a schedule that does not fit the model.
        """
        widths = self.target.widths
        schedule = Schedule.checked(widths.depth, widths.patches, tuple(stage_blocks), tuple(kept))
        ratio, unknown = self._known.predict(schedule)
        deviation = math.hypot(unknown, self.processes_apart * ratio)
        scale = self.reference_ms
        parts = tuple(Part(part.name, part.ms * scale) for part in self._known.split(schedule))
        return Prediction(ratio * scale, _SIGMAS * deviation * scale, parts)

    def add(self, probes: Iterable[Probe]) -> None:
        """Take in what was timed."""
        self._section.probes.extend(probes)
        self._section.date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        for told in ("_known", "processes_apart"):
            self.__dict__.pop(told, None)

    @cached_property
    def _known(self) -> PartTimes:
        return PartTimes(self.target.widths, *self.timings())

    @cached_property
    def processes_apart(self) -> float:
        """Standard deviation of an engine's time from process to process, as a share of it: that which makes the timings likeliest."""
        if len(self._section.probes) < ENOUGH:
            return _USUALLY_APART
        return max(_APART, key=lambda apart: PartTimes(self.target.widths, *self._timings(apart)).likelihood)

    def timings(self) -> tuple[list[Schedule], list[float], list[float]]:
        """Return the schedules that were timed, their times in those of the reference, and the share that each may be off."""
        return self._timings(self.processes_apart)

    def _timings(self, apart: float) -> tuple[list[Schedule], list[float], list[float]]:
        probes = self._section.probes
        timed = [Schedule(probe.stage_blocks, probe.kept) for probe in probes]
        # the median of n rounds is off by 1.25 of their deviation over √n, and their quartiles lie 1.35 deviations apart
        noise = [max(apart, 1.25 * probe.spread / 0.675 / self._section.rounds**0.5) for probe in probes]
        return [self.reference, *timed], [1.0, *(probe.ratio for probe in probes)], [apart, *noise]


def _opened(target: Target, path: Path | None) -> Section:
    """Return the table of the same circumstances that a file has, or an empty one."""
    what, where = target.what, target.here
    if path is not None and path.exists():
        for one in read_sections(path):
            if (one.what, one.where, one.rounds) == (what, where, ROUNDS):
                _check_probes(one, target, path, MEASURE_AGAIN)
                return one
    return Section(what=what, where=where, date="", rounds=ROUNDS, probes=[])


def _check_probes(section: Section, target: Target, path: Path, remedy: str) -> None:
    """Refuse a table that says something of schedules that the model cannot have, of which nothing can be told.

    Raises:
        InputError: names the schedule.
    """
    widths = target.widths
    for probe in section.probes:
        try:
            Schedule.checked(widths.depth, widths.patches, probe.stage_blocks, probe.kept)
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}; {remedy}") from None


def _pool(widths: Widths, wanted: Iterable[Schedule] = ()) -> list[Schedule]:
    """Return the schedules that may be timed beside the reference: those wanted, and others, always the same ones."""
    reference = reference_schedule(widths)
    return [one for one in dict.fromkeys((*wanted, *candidates(widths))) if one != reference]


def _enough(target: Target) -> int:
    """Return how many timings a table needs; a model of few blocks and patches has no more schedules."""
    return min(ENOUGH, len(_pool(target.widths)))


class _Measuring:
    """One measurement: what is timed next, and when it ends."""

    def __init__(self, table: LatencyTable, timer: Bench, path: Path | None, report: Progress) -> None:
        self._table, self._timer, self._path, self._report = table, timer, path, report

    def run(self, seconds: float, wanted: tuple[Schedule, ...]) -> None:
        started, took, failed = clock(), 0.0, []
        widths = self._table.target.widths
        for one in wanted:
            Schedule.checked(widths.depth, widths.patches, one.stage_blocks, one.kept)
        pool = _pool(widths, wanted)
        most = min(PROBES, len(pool))
        while (done := len(self._table.probes)) < most:
            self._report("Timing schedules on the engine", done, most)
            spent = clock() - started
            # the next few take as long as those before
            if done >= min(ENOUGH, most) and spent + took > seconds:
                break
            if len(failed) > max(_AT_ONCE, done):
                raise GateError(
                    f"latency cannot be told on this machine: {failed[-1]}; end what else runs on it, and measure again"
                )
            order = next_probes(widths, *self._table.timings(), pool, wanted)
            chosen = list(itertools.islice(order, min(_AT_ONCE, most - done)))
            timed = self._timer.time(chosen)
            failed += [one.doubt for one in timed if one.doubt]
            self._keep(chosen, timed)
            took = clock() - started - spent
        self._report("Timing schedules on the engine", most, most)

    def _keep(self, schedules: Sequence[Schedule], timed: Sequence[Timed]) -> None:
        """Take in what says something, and write the file."""
        self._table.add(
            Probe(
                stage_blocks=schedule.stage_blocks,
                kept=schedule.kept,
                ratio=one.ratio,
                spread=one.spread,
                reference_ms=one.reference_ms,
            )
            for schedule, one in zip(schedules, timed, strict=True)
            if one.doubt is None
        )
        if self._path is not None and self._table.probes:
            self._table.save(self._path)
