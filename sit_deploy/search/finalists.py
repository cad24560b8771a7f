"""The last of a search: the best few are built as any build makes them, and timed turn about with the unslimmed model's engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import engines
from engines.base import Progress
from engines.latency import percentile
from engines.speedup import speedup
from engines.timing import TimingOptions, WorkerResult, WorkerSpec, alternate, engine_worker
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import GateError
from sit_deploy.inference import Classifier
from sit_deploy.latency.schedule import Schedule
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.search.judge import Judge
from sit_deploy.search.request import in_precision
from sit_deploy.search.scored import Score, Scored

ROUNDS, SECONDS, WARM_UP = 7, 0.25, 0.5
_UNSLIMMED = "the unslimmed model"


@dataclass(frozen=True)
class Timed:
    """A schedule whose engine was built.

    Attributes:
        scored: with what was measured of the engine, where it runs here.
        bundle: its folder.
        low_ms, high_ms: quartiles of the rounds' medians; None where it does not run here.
        doubt: why its time says nothing; None where it does.
    """

    scored: Scored
    bundle: Path
    low_ms: float | None = None
    high_ms: float | None = None
    doubt: str | None = None


class Finalists:
    """Builds and times schedules.

    Args:
        base: request for the unslimmed model.
        method: that slims.
        engine: that all are built for.
        folder: for bundles; made, and the caller's to remove.
        judge: of the engines' outputs.
        report: how it shows progress.
    """

    def __init__(
        self,
        base: BuildRequest,
        method: str,
        engine: engines.Engine,
        folder: Path,
        judge: Judge,
        report: Progress,
    ) -> None:
        self._base, self._method, self._engine = base, method, engine
        self._folder, self._judge, self._report = folder, judge, report
        self._bundles: dict[tuple[Schedule, str], Bundle] = {}
        self._scores: dict[tuple[Schedule, str], Score] = {}
        #: why schedules could not be built
        self.refused: dict[str, str] = {}

    def measure(self, scored: Sequence[Scored]) -> list[Timed]:
        """Build schedules and, where the engine runs here, time them beside the unslimmed model of each precision.

        Returns:
            Those that could be built.
        """
        built = [(one, bundle) for one in scored if (bundle := self._build(one.schedule, one.precision))]
        if not self._engine.probe().can_run:
            # what stands for the engine is compared on the images that the engine would be, as the unslimmed model was
            return [
                Timed(replace(one, score=self._on_all(one.schedule)), bundle.path) for one, bundle in built
            ]
        references = {
            precision: bundle
            for precision in dict.fromkeys(one.precision for one, _ in built)
            if (bundle := self._build(self._judge.unslimmed, precision))
        }
        timed = []
        for precision, reference in references.items():
            mine = [(one, bundle) for one, bundle in built if one.precision == precision]
            timed += self._time(precision, reference, mine)
        return timed

    def _time(self, precision: str, reference: Bundle, built: Sequence[tuple[Scored, Bundle]]) -> list[Timed]:
        """Time the engines of one precision, in the same rounds."""
        options = TimingOptions(ROUNDS, SECONDS, WARM_UP, threads=self._base.threads)

        def worker(bundle: Bundle) -> WorkerSpec:
            batch = self._base.usual_batch
            return engine_worker(self._engine.kind, bundle.engine_path, batch, options, bundle.origin)

        names = {one.schedule.name: (one, bundle) for one, bundle in built}
        workers = {_UNSLIMMED: worker(reference)}
        workers |= {
            name: worker(bundle)
            for name, (one, bundle) in names.items()
            if len(one.schedule.stage_blocks) > 1
        }
        results = alternate(workers, options, self._report)
        unslimmed = results[_UNSLIMMED]
        timed = []
        for name, (one, bundle) in names.items():
            result = results.get(name, unslimmed)
            doubt = (
                None
                if result is unslimmed
                else speedup(unslimmed, result, (_UNSLIMMED, "the slimmed one")).doubt
            )
            score = self._score(one.schedule, precision, bundle)
            timed.append(
                Timed(one.timed(_median(result), score), bundle.path, *_quartiles(result), doubt=doubt)
            )
        own = Scored(self._judge.unslimmed, precision, _median(unslimmed), self._judge.own)
        if not any(one.schedule == own.schedule for one, _ in built):
            score = self._score(own.schedule, precision, reference)
            doubts = [one.doubt for one in timed]
            timed.append(
                Timed(
                    own.timed(_median(unslimmed), score),
                    reference.path,
                    *_quartiles(unslimmed),
                    doubt=doubts[0] if doubts and all(doubts) else None,
                )
            )
        return timed

    def _score(self, schedule: Schedule, precision: str, bundle: Bundle) -> Score:
        key = (schedule, precision)
        if key not in self._scores:
            self._report("Running the images through an engine", 0, 0)
            runner = self._engine.load(bundle.engine_path, threads=self._base.threads, origin=bundle.origin)
            with Classifier(runner, self._base.batch_range) as classifier:
                self._scores[key] = self._judge.of_outputs(classifier.logits)
            self._report("Running the images through an engine", 1, 1)
        return self._scores[key]

    def _on_all(self, schedule: Schedule) -> Score:
        self._report(f"{schedule.name}: running all images through PyTorch", 0, 0)
        score = self._judge.on_all(schedule)
        self._report(f"{schedule.name}: running all images through PyTorch", 1, 1)
        return score

    def _build(self, schedule: Schedule, precision: str) -> Bundle | None:
        """Return the bundle of a schedule; None where it cannot be built to its tolerances."""
        key = (schedule, precision)
        name = f"{schedule.name}-{precision}"
        if key in self._bundles:
            return self._bundles[key]
        if name in self.refused:
            return None
        request = replace(in_precision(self._base, precision), output=self._folder / name)
        if len(schedule.stage_blocks) > 1:
            request = replace(
                request,
                stages=schedule.stage_blocks,
                kept=schedule.kept,
                method=self._method,
                keeping_ratio=None,
            )

        def report(text: str, done: int, total: int) -> None:
            self._report(f"{schedule.name} {precision}: {text}", done, total)

        try:
            build(request, report)
        except GateError as error:
            self.refused[name] = str(error)
            shutil.rmtree(self._folder / name, ignore_errors=True)
            return None
        self._bundles[key] = load_bundle(self._folder / name)
        return self._bundles[key]


def _quartiles(result: WorkerResult) -> tuple[float, float]:
    rounds = sorted(result.round_medians_ms)
    return percentile(rounds, 25), percentile(rounds, 75)


def _median(result: WorkerResult) -> float:
    return percentile(sorted(result.round_medians_ms), 50)
