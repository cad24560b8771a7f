"""Latency tables of a search: those that were given, those of its folder, and what has to be measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import engines
from engines.base import Progress
from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.table import LatencyTable
from sit_deploy.latency.target import Target
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.search.folder import SearchFolder
from sit_deploy.search.request import SearchRequest
from sit_deploy.search.scored import Scored

if TYPE_CHECKING:
    from sit_deploy.models.load import LoadedModel

_MEASURING = 0.4  # share of the seconds
_LEAST = 0.01  # of the unslimmed model's time: noise may foretell less than nothing for a schedule


class Tables:
    """The latency tables of all precisions of a search.

    Args:
        request: of the search.
        loaded: the unslimmed model.
        engine: that is timed.
        folder: where measured tables are kept, for the next run of the search too.
        report: how it shows progress.

    Raises:
        InputError: a given table is of something else, or the engine does not run here and none was given.
        GateError: others use the machine, so that no time says anything.
    """

    def __init__(
        self,
        request: SearchRequest,
        loaded: LoadedModel,
        engine: engines.Engine,
        folder: SearchFolder,
        report: Progress,
    ) -> None:
        build, model = request.build, loaded.model
        seconds = _MEASURING * request.seconds / len(request.precisions)
        self._tables: dict[str, LatencyTable] = {}
        #: times as long as the table says that engines take, by precision: told from the unslimmed model's
        self._pace: dict[str, float] = {}
        #: milliseconds that the method takes more than a TSM, each time tokens are slimmed, by precision: tables are of TSMs
        self._more: dict[str, float] = {}
        targets = {}
        for precision in request.precisions:
            low = precision in EIGHT_BITS
            groups = build.quantize if low and build.quantize and "default" not in build.quantize else None
            targets[precision] = Target(
                loaded.config,
                engine.kind,
                precision,
                build.usual_batch,
                build.threads,
                build.rest if low else None,
                groups,
                model.img_size[0],
                model.num_classes,
                model.has_dist_token,
            )
        #: what a user should know of them
        self.notes: list[str] = []
        self._take(request.tables, targets)
        for precision, target in targets.items():
            if precision not in self._tables:
                self._tables[precision] = self._measured(target, folder, seconds, report)

    def _take(self, paths: Iterable[Path], targets: Mapping[str, Target]) -> None:
        """Take given tables, each of which is of one of the precisions at least.

        Raises:
            InputError: one is of none of them.
        """
        for path in paths:
            reasons = []
            for precision, target in targets.items():
                try:
                    found = LatencyTable.load(path, target)
                except InputError as error:
                    reasons.append(error)
                    continue
                self._tables.setdefault(precision, found)
            if len(reasons) == len(targets):
                raise reasons[0]

    def _measured(
        self, target: Target, folder: SearchFolder, seconds: float, report: Progress
    ) -> LatencyTable:
        if not target.runs_here:
            raise InputError(
                f"{target.runtime.title} does not run here, so nothing can be timed on it; pass --table with one that was measured where it "
                "does: the folder of a search there has it as latency-PRECISION.json"
            )

        def told(text: str, done: int, total: int) -> None:
            report(f"{text} ({target.precision})", done, total)

        table = LatencyTable.measure(
            target, path=folder.table(target.precision), seconds=seconds, progress=told
        )
        if (done := len(table.probes)) < table.wanted:
            self.notes.append(
                f"{done} of {table.wanted} schedules were timed for the latency table at {target.precision} when its share of the seconds was used up: "
                "predictions are rough; pass more --seconds, with --force"
            )
        return table

    def predict(self, precision: str, schedule: Schedule) -> float:
        """Return the milliseconds a batch of a schedule."""
        steps = len(schedule.stage_blocks) - 1
        told = self._paced(precision, schedule) + steps * self._more.get(precision, 0.0)
        if not steps:
            return told
        unslimmed = Schedule((schedule.depth,), schedule.kept[:1])
        return max(told, _LEAST * self._paced(precision, unslimmed))

    def predict_student(self, precision: str, schedule: Schedule) -> float:
        """Return the milliseconds a batch of a student of a schedule, which has TSMs in place of the method: tables are of these."""
        unslimmed = Schedule((schedule.depth,), schedule.kept[:1])
        return max(self._paced(precision, schedule), _LEAST * self._paced(precision, unslimmed))

    def _paced(self, precision: str, schedule: Schedule) -> float:
        return self._pace.get(precision, 1.0) * self._predict(precision, schedule)

    @cache  # noqa: B019  (as long as a search, of which there is one)
    def _predict(self, precision: str, schedule: Schedule) -> float:
        return self._tables[precision].predict(schedule.stage_blocks, schedule.kept).ms

    def learn(self, timed: Iterable[Scored]) -> None:
        """Take in what engines were measured to take: how fast they are today, and what the table does not know of the method.

        Args:
            timed: measured ones of any precisions, the unslimmed model's among them.
        """
        measured = [one for one in timed if one.measured_ms is not None]
        for one in measured:
            if len(one.schedule.stage_blocks) == 1:
                self._pace[one.precision] = one.measured_ms / self._predict(one.precision, one.schedule)
        more: dict[str, list[float]] = {}
        for one in measured:
            if steps := len(one.schedule.stage_blocks) - 1:
                apart = one.measured_ms - self._paced(one.precision, one.schedule)
                more.setdefault(one.precision, []).append(apart / steps)
        self._more |= {precision: statistics.median(values) for precision, values in more.items()}

    def largest_part(self, precision: str, schedule: Schedule) -> tuple[str, float]:
        """Return the largest part of a schedule's time, by name, and its milliseconds."""
        parts = self._tables[precision].predict(schedule.stage_blocks, schedule.kept).parts
        most = max(parts, key=lambda part: part.ms)
        return most.name, most.ms * self._pace.get(precision, 1.0)

    @property
    def engine_words(self) -> str:
        """The engine and its release."""
        table = next(iter(self._tables.values()))
        return f"{table.target.engine} {table.measured_on.runtime}"

    @property
    def where(self) -> str:
        """The CPU or GPU that was measured on."""
        return next(iter(self._tables.values())).measured_on.device
