"""Candidates of a tuning, built in turn: how fast the engine is, how far its logits are off, what it loses on labelled images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import engines
from engines.cpu import shortest_slice
from engines.errors import EngineError
from sit_deploy.bundle import MODEL
from sit_deploy.pipeline.float_graph import FloatGraph
from sit_deploy.pipeline.logits import REFERENCE_BATCH, RememberedLogits
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import TOLERANCE
from sit_deploy.tune.measured import FLOAT, Candidate, LogitsError, Timing

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from typing_extensions import Self

    from calibration.plan import QuantPlan
    from engines.timing import TimingOptions, WorkerResult
    from engines.worker import Worker
    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.data.labelled import Labelled
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import Quantizer

ROUNDS, SECONDS, WARM_UP = 7, 0.12, 0.3  # of a candidate's timing
IMAGES = 32  # that logits are compared on


@dataclass(frozen=True)
class Material:
    """What candidates are made of, and compared on.

    Attributes:
        request: of the build; the engine's options are its own.
        float_graph: what has nothing in 8 bits.
        quantizer: of all groups that may be tried.
        stream: of calibration images.
        samples: the labelled images, where there are any.
        engine: that candidates are for.
        damaged: takes note of labelled images that cannot be read.
    """

    request: BuildRequest
    float_graph: FloatGraph
    quantizer: Quantizer
    stream: ImageStream
    samples: Labelled | None = None
    engine: engines.Engine | None = None
    damaged: DamagedImages | None = None

    @cached_property
    def _float(self) -> onnx.ModelProto:
        from sit_deploy.graph.norms import float_form

        return float_form(self.float_graph.graph, self.engine)

    def plan(self, candidate: Candidate) -> QuantPlan:
        """Return the plan of a candidate in 8 bits."""
        return self.quantizer.plan.of_groups(candidate.groups).keep_high(candidate.high)

    def graph(self, candidate: Candidate) -> onnx.ModelProto:
        """Return the graph of a candidate, for images that are normalised: pixels cost all of them the same."""
        from sit_deploy.graph.precision import to_precision

        if candidate.is_float:
            return to_precision(self._float, candidate.rest)[0]
        low = self.quantizer.with_plan(self.plan(candidate)).quantized()
        return low if candidate.rest == FLOAT else to_precision(low, candidate.rest)[0]


class CandidateBench:
    """Builds one candidate after the other, and measures it. Use as a context manager: the float32 engine's process stays up.

    Args:
        engine: that runs them.
        material: of the candidates.
        folder: for their files, one candidate's at a time; made, and removed at the end.
    """

    def __init__(self, engine: engines.Engine, material: Material, folder: Path) -> None:
        self._engine, self._material, self._folder = engine, material, folder
        self._built: tuple[Candidate, engines.EngineInfo] | None = None
        self._reference: Worker | None = None
        #: why candidates could not be built, by candidate
        self.refused: dict[Candidate, str] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reference is not None:
            self._reference.stop(gently=kind is None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def time(self, candidate: Candidate) -> Timing | None:
        """Time a candidate against the float32 engine, turn about; None where the engine cannot be built of it."""
        if candidate == Candidate():
            return self._time_reference()
        path = self._build(candidate)
        if path is None:
            return None
        from engines.timing import take_turns

        self._start_reference()
        worker = self._worker("candidate", path, self._built[1])
        finished = False
        try:
            results = take_turns({FLOAT: self._reference, "candidate": worker}, self._options())
            finished = True
        finally:
            worker.stop(gently=finished)
        return _timing(results[FLOAT], results["candidate"])

    def correct(self, corrected: bool) -> None:
        """Have the biases of candidates corrected from now on, or not."""
        quantizer = replace(self._material.quantizer, corrected=corrected)
        self._material, self._built = replace(self._material, quantizer=quantizer), None

    def error(self, candidate: Candidate) -> LogitsError:
        """Compare a candidate's logits with those of the float32 graph, on the engine itself: its rest rounds too."""
        import numpy as np

        logits, reference = self._logits(candidate, self._images), self._reference_logits
        difference = logits.astype(np.float64) - reference
        power = float(np.square(difference).mean()) / float(np.square(reference.astype(np.float64)).mean())
        if not np.isfinite(power):
            return LogitsError(1.0, tolerated=False)
        precision = candidate.rest if candidate.is_float else self._material.request.precision
        largest = float(np.abs(difference).max()) / (float(reference.astype(np.float64).std()) or 1.0)
        return LogitsError(power, largest <= TOLERANCE[precision])

    def drop(self, candidate: Candidate, report: Callable[[str, int, int], None]) -> float:
        """Return the points of top-1 that a candidate loses on the labelled images, on the engine itself."""
        from sit_deploy.inference import Classifier
        from sit_deploy.measure.accuracy import measure

        material = self._material
        with Classifier(self._open(candidate), material.request.batch_range) as classifier:
            return measure(
                self._labelled_logits.again(),
                classifier.logits,
                material.samples,
                material.float_graph.preprocessing,
                REFERENCE_BATCH,
                report,
                material.damaged,
            ).drop

    @cached_property
    def _images(self) -> np.ndarray:
        import numpy as np

        return np.concatenate(list(self._material.stream.spread(IMAGES)))

    @cached_property
    def _reference_logits(self) -> np.ndarray:
        from sit_deploy.quantize.logits import run_logits

        return run_logits(self._material.float_graph.graph, self._material.stream.spread(IMAGES))

    @cached_property
    def _labelled_logits(self) -> RememberedLogits:
        return RememberedLogits(self._material.float_graph.loaded.model)

    def _logits(self, candidate: Candidate, images: np.ndarray) -> np.ndarray:
        from sit_deploy.inference import Classifier

        with Classifier(self._open(candidate), self._material.request.batch_range) as classifier:
            return next(iter(classifier.outputs(images).values()))

    def _open(self, candidate: Candidate) -> engines.Runner:
        path = self._build(candidate)
        if path is None:
            raise EngineError(self.refused[candidate])
        return self._engine.load(path, threads=self._material.request.threads, origin=self._built[1].origin)

    def _build(self, candidate: Candidate, name: str = "candidate") -> Path | None:
        """Build a candidate's engine, unless it is the last one built; None where it cannot be."""
        path = self._folder / name / self._engine.filename
        if self._built is not None and self._built[0] == candidate:
            return path
        if candidate in self.refused:
            return None
        self._built = None
        try:
            info = self._engine_of(candidate, path)
        except EngineError as error:
            self.refused[candidate] = str(error)
            return None
        self._built = candidate, info
        return path

    def _engine_of(self, candidate: Candidate, path: Path) -> engines.EngineInfo:
        from sit_deploy.graph.write import write_graph

        path.parent.mkdir(exist_ok=True)
        source = path.with_name(MODEL)
        write_graph(self._material.graph(candidate), source)
        info = self._engine.build(source, path, self._material.request.engine_options())
        with suppress(OSError):
            source.unlink()
        return info

    def _start_reference(self) -> None:
        """Start the float32 engine's process, which all candidates are timed against: what the machine does to both divides out."""
        if self._reference is None:
            path = self._folder / "reference" / self._engine.filename
            self._reference = self._worker(FLOAT, path, self._engine_of(Candidate(), path))

    def _time_reference(self) -> Timing:
        from engines.timing import take_turns

        self._start_reference()
        result = take_turns({FLOAT: self._reference}, self._options())[FLOAT]
        return Timing(1.0, 1.0, 1.0, result.stats.p50_ms)

    def _worker(self, name: str, path: Path, info: engines.EngineInfo) -> Worker:
        from engines.timing import engine_worker
        from engines.worker import Worker

        spec = engine_worker(
            self._engine.kind, path, self._material.request.usual_batch, self._options(), info.origin
        )
        return Worker(name, spec, WARM_UP)

    def _options(self) -> TimingOptions:
        from engines.timing import TimingOptions

        # on a single CPU a slice has to be longer, or nothing is told of others on it
        seconds = max(SECONDS, shortest_slice())
        return TimingOptions(ROUNDS, seconds, WARM_UP, threads=self._material.request.threads)


def _timing(reference: WorkerResult, candidate: WorkerResult) -> Timing:
    """Return a candidate's speed; that the rounds lie on both sides of 1 is a figure too."""
    from engines.latency import percentile
    from engines.speedup import speedup

    gain = speedup(reference, candidate, (f"the {FLOAT} engine", "a candidate"))
    ordered = sorted(gain.per_round or gain.doubted_rounds) or [0.0]
    low, middle, high = (percentile(ordered, percent) for percent in (25, 50, 75))
    return Timing(middle, low, high, gain.candidate_ms, None if gain.measurable else gain.doubt)


def float_precisions(engine: engines.Engine) -> tuple[str, ...]:
    """Return the float precisions that an engine has kernels for on this CPU, FLOAT first."""
    return tuple(one for one in (FLOAT, "bf16") if one in engine.precisions and _has(engine, one))


def rests(engine: engines.Engine, asked: str | None = None) -> tuple[str, ...]:
    """Return what may be beside 8 bits on this CPU, the finest first; what was asked for alone, where it was."""
    if asked is not None:
        return (asked,)
    return (FLOAT, *(("bf16",) if "bf16" in engine.rests and _has(engine, "bf16") else ()))


def _has(engine: engines.Engine, precision: str) -> bool:
    return precision == FLOAT or engine.lacks(precision) is None
