"""Latency tables of a search: those that were given, those of its folder, and what has to be measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from functools import cache

import engines
from engines.base import Progress
from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.table import LatencyTable
from sit_deploy.latency.target import Target
from sit_deploy.models.load import LoadedModel
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.search.folder import SearchFolder
from sit_deploy.search.request import SearchRequest
from sit_deploy.search.scored import Scored

_MEASURING = 0.4  # share of the seconds


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
        #: milliseconds that the method takes more than a TSM, each time tokens are slimmed, by precision: tables are of TSMs
        self._more: dict[str, float] = {}
        for precision in request.precisions:
            low = precision in EIGHT_BITS
            groups = build.quantize if low and build.quantize and "default" not in build.quantize else None
            target = Target(
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
            self._tables[precision] = self._table(target, request, folder, seconds, report)

    def _table(
        self, target: Target, request: SearchRequest, folder: SearchFolder, seconds: float, report: Progress
    ) -> LatencyTable:
        reasons = []
        for path in request.tables:
            try:
                return LatencyTable.load(path, target)
            except InputError as error:
                reasons.append(str(error))
        if reasons and len(request.tables) >= len(request.precisions):
            raise InputError(reasons[0])
        if not target.runs_here:
            raise InputError(
                f"{target.runtime.title} does not run here, so nothing can be timed on it; pass --table with one that was measured where it "
                "does: the folder of a search there has it as latency-PRECISION.json"
            )

        def told(text: str, done: int, total: int) -> None:
            report(f"{text} ({target.precision})", done, total)

        return LatencyTable.measure(
            target, path=folder.table(target.precision), seconds=seconds, progress=told
        )

    def predict(self, precision: str, schedule: Schedule) -> float:
        """Return the milliseconds a batch of a schedule."""
        steps = len(schedule.stage_blocks) - 1
        return self._predict(precision, schedule) + steps * self._more.get(precision, 0.0)

    @cache  # noqa: B019  (as long as a search, of which there is one)
    def _predict(self, precision: str, schedule: Schedule) -> float:
        return self._tables[precision].predict(schedule.stage_blocks, schedule.kept).ms

    def learn(self, timed: Iterable[Scored]) -> None:
        """Take in what engines were measured to take: what the table does not know of the method is told from them.

        Args:
            timed: measured ones of any precisions.
        """
        more: dict[str, list[float]] = {}
        for one in timed:
            steps = len(one.schedule.stage_blocks) - 1
            if steps and one.measured_ms is not None:
                apart = one.measured_ms - self._predict(one.precision, one.schedule)
                more.setdefault(one.precision, []).append(apart / steps)
        self._more |= {precision: statistics.median(values) for precision, values in more.items()}

    def largest_part(self, precision: str, schedule: Schedule) -> tuple[str, float]:
        """Return the largest part of a schedule's time, by name, and its milliseconds."""
        parts = self._tables[precision].predict(schedule.stage_blocks, schedule.kept).parts
        most = max(parts, key=lambda part: part.ms)
        return most.name, most.ms

    @property
    def engine_words(self) -> str:
        """The engine and its release."""
        table = next(iter(self._tables.values()))
        return f"{table.target.engine} {table.measured_on.runtime}"

    @property
    def where(self) -> str:
        """The CPU or GPU that was measured on."""
        return next(iter(self._tables.values())).measured_on.device
