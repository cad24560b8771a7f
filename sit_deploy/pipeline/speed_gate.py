"""What a build in 8 bits does besides: keep the accuracy budget, and find out whether 8 bits are any faster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.bundle import MODEL
from sit_deploy.errors import Error, GateError
from sit_deploy.measure.parity import require
from sit_deploy.report.speedup_text import sentence
from sit_deploy.text import WarningText

if TYPE_CHECKING:
    import numpy as np

    from calibration.plan import QuantPlan
    from sit_deploy.measure.accuracy import Accuracy
    from sit_deploy.pipeline.float_graph import Graph, Work
    from sit_deploy.quantize.image_stream import ImageStream

SENSITIVITY_IMAGES = 32
SENSITIVITY_LABELLED = 256
ROUNDS, SECONDS = 7, 0.5  # of the timing


class NoGainError(Error):
    """8 bits cannot keep the accuracy asked for, or are no faster: the sentence says which, and what is built instead."""

    exit_status = 1


def settle(work: Work, made: Graph, folder: Path) -> tuple[Graph, dict[str, Any]]:
    """Return the graph whose plan keeps the accuracy budget, and what the report says of 8 bits.

    Raises:
        NoGainError: no plan with enough layers in 8 bits keeps it, or the one that does is out of tolerance.
    """
    from sit_deploy.quantize.sensitivity import measure_sensitivity

    lowered, request = made.lowered, work.request
    alone: dict[str, dict[str, float]] = {}

    def measure_alone() -> dict[str, float]:
        if not alone:
            with work.step("Quantizing one layer at a time") as report:
                from sit_deploy.data.samples import spread

                stream = lowered.stream or _validation_stream(work, made)
                labelled = spread(work.samples or [], SENSITIVITY_LABELLED) if request.sensitivity else []
                alone.update(
                    measure_sensitivity(
                        lowered.quantizer, stream.spread(SENSITIVITY_IMAGES), labelled, report
                    )
                )
        return {name: row["noise"] for name, row in alone.items()}

    tries: tuple[tuple[float, float], ...] = ()
    if request.sensitivity:
        measure_alone()
    if request.max_accuracy_drop is not None:
        made, tries = _keep_budget(work, made, folder, measure_alone)
        try:
            require(work.hops, f"{request.high} was built instead")
        except GateError as error:
            raise NoGainError(str(error)) from None
    quantizer = made.lowered.quantizer
    return made, {
        "method": quantizer.method,
        "bias_correction": quantizer.corrected,
        "rest": request.high,
        "share_of_macs": quantizer.plan.share,
        "layers": quantizer.rows(alone),
        "tries": [{"share_of_macs": share, "drop": drop} for share, drop in tries],
    }


def _validation_stream(work: Work, made: Graph) -> ImageStream:
    """Return validation images to measure layers on, where there was no need of calibration images."""
    from sit_deploy.data.samples import spread
    from sit_deploy.quantize.image_stream import ImageStream

    chosen = [source for source, _ in spread(work.samples, SENSITIVITY_IMAGES)]
    return ImageStream(chosen, made.preprocessing, work.samples.name)


def _keep_budget(
    work: Work, made: Graph, folder: Path, noise: Callable[[], Mapping[str, float]]
) -> tuple[Graph, tuple[tuple[float, float], ...]]:
    from sit_deploy.pipeline.accuracy_budget import fit
    from sit_deploy.pipeline.lower import lower_quantized

    request, first = work.request, made.lowered
    limit = request.max_accuracy_drop
    reference = _Remembered(made)
    hops = [hop for hop in work.hops if hop.precision != request.precision]

    def attempt(plan: QuantPlan) -> Accuracy:
        nonlocal made
        if plan is not made.lowered.quantizer.plan:
            work.hops[:] = hops  # the float graph's; this plan's come new
            quantizer = first.quantizer.with_plan(plan)
            lowered = lower_quantized(work, made.exported, quantizer, first.calibration, first.stream, folder)
            made = replace(made, lowered=lowered)
        with work.step("Measuring accuracy of a plan") as report:
            return _graph_accuracy(work, made, folder, reference, report)

    whole = attempt(first.quantizer.plan)
    result = fit(first.quantizer.plan, whole, limit, noise, attempt)
    told = "; ".join(f"{share:.0%} in 8 bits: {drop:+.2f}" for share, drop in result.tries)
    if result.plan is None:
        raise NoGainError(
            f"{request.precision} cannot keep top-1 within {limit:g} points (lost by share of the work {told}); "
            f"{request.high} was built instead"
        )
    if made.lowered.quantizer.plan is not result.plan:
        attempt(result.plan)  # writes its graph again
    if high := result.plan.kept_for_accuracy:
        more = ", ..." if len(high) > 3 else ""
        work.notes.append(
            f"kept in {request.high} to lose at most {limit:g} points ({told}): {', '.join(high[:3])}{more}"
        )
    return made, result.tries


class _Remembered:
    """PyTorch's logits, computed once for all plans; `measure` asks for the same batches in the same order each time."""

    def __init__(self, made: Graph) -> None:
        self._model = made.loaded.model
        self._known: list[np.ndarray] = []
        self._next = 0

    def again(self) -> _Remembered:
        self._next = 0
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        from sit_deploy.pipeline.float_graph import torch_logits

        if self._next == len(self._known):
            self._known.append(torch_logits(self._model, images))
        self._next += 1
        return self._known[self._next - 1]


def _graph_accuracy(work: Work, made: Graph, folder: Path, reference: _Remembered, report: Any) -> Accuracy:
    from sit_deploy.inference import Classifier, graph_on_onnxruntime
    from sit_deploy.measure.accuracy import measure
    from sit_deploy.pipeline.float_graph import REFERENCE_BATCH

    with (
        graph_on_onnxruntime(folder / MODEL, threads=work.request.threads) as runner,
        Classifier(runner, work.request.batch_range) as classifier,
    ):
        return measure(
            reference.again(), classifier.logits, work.samples, made.preprocessing, REFERENCE_BATCH, report
        )


def compare_speed(
    work: Work,
    engine: engines.Engine,
    engine_path: Path,
    made: Graph,
    options: engines.BuildOptions,
    origin: engines.EngineOrigin,
) -> dict[str, Any] | None:
    """Time the engine against one without 8 bits, turn about; None where the engine cannot run here, which a note says.

    Args:
        options: that the engine was built with; the other is built with them too. origin: of the engine.

    Raises:
        NoGainError: the rounds bear out that it is no faster, and an accuracy budget was given: then only speed could have
            made up for the loss. Where they bear nothing out, what was asked for stays, and a note says so.
    """
    from engines.speedup import speedup
    from engines.timing import TimingOptions, alternate, engine_worker
    from sit_deploy.graph.float16_ranges import observe_float16_ranges
    from sit_deploy.graph.pixels import take_pixels
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.write import write_graph

    request = work.request
    if not engine.probe().can_run:
        work.notes.append(
            f"whether {request.precision} is faster than {request.high} was not measured: the engine does not run here"
        )
        return None
    batch = request.dynamic_batch[1] if request.dynamic_batch else request.batch_size
    with (
        work.step(f"Timing {request.precision} against {request.high}") as report,
        tempfile.TemporaryDirectory(prefix="sit-deploy-") as other,
    ):
        source, higher = Path(other) / MODEL, Path(other) / engine.filename
        float_graph = made.exported.graph
        ranges = None
        if request.high == "fp16":
            ranges = observe_float16_ranges(float_graph, made.images, request.batch_range[1])
        graph = to_precision(float_graph, request.high, ranges)[0]
        if made.preprocessing.takes_pixels:
            graph = take_pixels(graph, made.preprocessing)
        write_graph(graph, source)
        theirs = engine.build(source, higher, options).origin
        timing = TimingOptions(ROUNDS, SECONDS, threads=request.threads)
        workers = {
            name: engine_worker(engine.kind, path, batch, timing, made_from)
            for name, path, made_from in (
                (request.high, higher, theirs),
                (request.precision, engine_path, origin),
            )
        }
        results = alternate(workers, timing, report)
    low, high = request.precision, request.high
    gain = speedup(results[high], results[low], (high, low))
    speed = {
        "over": high,
        "batch_size": batch,
        "ratio": gain.median,
        "low": gain.low,
        "high": gain.high,
        "per_round": list(gain.per_round),
        "p50_ms": {high: gain.baseline_ms, low: gain.candidate_ms},
        "doubt": gain.doubt,
    }
    if gain.doubt:
        # a report times the bundle's own graph in both types on ONNX Runtime alone
        again = "run `sit-deploy report` on the bundle" if engine.kind == "onnxruntime" else "build it again"
        work.notes.append(sentence(low, high, gain, f"close other programs, and {again}"))
    if gain.slower:
        told = f"{low} is not faster than {high} on {engine.kind} here ({gain.median:.2f}× at batch {batch})"
        if request.max_accuracy_drop is not None:
            raise NoGainError(f"{told}; {high} was built instead")
        work.notes.append(WarningText(f"do not ship {low}: {told}; build with --precision {high}"))
    return speed
