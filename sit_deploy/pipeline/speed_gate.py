"""Whether 8 bits are any faster: the engine is timed against one without them, turn about."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import MODEL
from sit_deploy.errors import GateError
from sit_deploy.outputs import can_be_reported
from sit_deploy.pipeline.candidates import float_precisions
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.float_graph import FloatGraph
from sit_deploy.pipeline.work import Work
from sit_deploy.report.speedup_text import sentence

if TYPE_CHECKING:
    from engines.base import Engine, EngineOrigin, Progress
    from engines.speedup import Speedup
    from engines.timing import TimingOptions
    from engines.worker import WorkerSpec
    from sit_deploy.pipeline.request import BuildRequest

ROUNDS, SECONDS = 7, 0.5  # of the timing
WORTH_IT = 1.15  # times as fast as BF16 that 8 bits should be
ATTEMPTS = 2  # at it, where an answer is needed; the second has twice the rounds


_REMEDY = (
    "with --max-accuracy-drop or --min-sqnr 8 bits must be faster to be kept: close other programs, give --threads {threads} or pin the build "
    "(taskset -c 0 sit-deploy build ...), and build again; or leave the limit out"
)


def compare_speed(
    work: Work, built: BuiltEngine, float_graph: FloatGraph, over: str | None = None
) -> dict[str, Any] | None:
    """Time the engine against one without 8 bits, turn about; None where the engine cannot run here, which a note says.

    Args:
        work: of the build; the other engine is built with the same options.
        built: the engine in 8 bits.
        float_graph: that both are made of.
        over: the fastest float precision, where that is known; if None, the fastest of the one beside 8 bits and those that the
            CPU has.

    Raises:
        NoGainError: the rounds bear out that it is no faster, and an accuracy budget was given: then only speed could have
            made up for the loss.
        GateError: an accuracy budget was given, and on this machine it cannot be measured now, not in a second attempt
            either. Without a budget what was asked for stays then, and a note says so.
    """
    from engines.cpu import cpu_count
    from engines.timing import TimingOptions, engine_worker

    request, engine = work.request, built.runtime
    low = request.precision
    others = float_precisions(engine) if engine.on_cpu else ()  # which a GPU's builder takes minutes for
    floats = [over] if over else list(dict.fromkeys((request.high, *others)))
    if not built.runs_here:
        work.note(f"whether {low} is faster than {floats[0]} was not measured: the engine does not run here")
        return None
    batch = request.usual_batch
    timing = TimingOptions(ROUNDS, SECONDS, threads=request.threads)
    with (
        work.step(f"Timing {low} against {' and '.join(floats)}") as report,
        tempfile.TemporaryDirectory(prefix="sit-deploy-") as other,
    ):
        workers = {}
        for precision in floats:
            path, origin = _build_float(request, float_graph, engine, precision, Path(other))
            workers[precision] = engine_worker(engine.kind, path, batch, timing, origin)
        workers[low] = engine_worker(engine.kind, built.path, batch, timing, built.info.origin)
        high, gain = _time(workers, timing, report, needed=request.has_limit)
    speed = {
        "over": high,
        "batch_size": batch,
        "ratio": gain.median,
        "low": gain.low,
        "high": gain.high,
        "per_round": list(gain.per_round),
        "doubted_rounds": list(gain.doubted_rounds),
        "p50_ms": {high: gain.baseline_ms, low: gain.candidate_ms},
        "doubt": gain.doubt,
    }
    if gain.doubt:
        # a report times the bundle's own graph in both types on ONNX Runtime alone
        reported = engine.kind == "onnxruntime" and can_be_reported(one.name for one in float_graph.outputs)
        again = "run `sit-deploy report` on the bundle" if reported else "build it again"
        if not gain.measurable and request.has_limit:
            raise GateError(sentence(low, high, gain, _REMEDY.format(threads=max(1, cpu_count() - 1))))
        work.note(sentence(low, high, gain, f"close other programs, and {again}"))
    if gain.slower:
        slower = (
            f"{low} is not faster than {high} on {engine.kind} here ({gain.median:.2f}× at batch {batch})"
        )
        if request.has_limit:
            raise NoGainError(NoGain.SPEED, f"{slower}; {high} was built instead", high)
        work.warn(f"do not ship {low}: {slower}; build with --precision {high}")
    elif high == "bf16" and gain.measurable and gain.median < WORTH_IT:
        work.note(
            f"ship bf16, perhaps: {low} is {gain.median:.2f}× as fast as it on {engine.kind} here, and bf16 needs no calibration and keeps more "
            "accuracy; build with --precision bf16"
        )
    return speed


def _build_float(
    request: BuildRequest, float_graph: FloatGraph, engine: Engine, precision: str, folder: Path
) -> tuple[Path, EngineOrigin]:
    """Build the engine without 8 bits in a folder of its own; return its file, and how it was built."""
    from sit_deploy.graph.float16_ranges import observe_float16_ranges
    from sit_deploy.graph.norms import float_form
    from sit_deploy.graph.pixels import take_pixels
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.write import write_graph

    path = folder / precision / engine.filename
    path.parent.mkdir()
    ranges = None
    if precision == "fp16":
        images = float_graph.compared.normalised
        ranges = observe_float16_ranges(float_graph.graph, images, request.batch_range[1])
    graph = to_precision(float_form(float_graph.graph, engine), precision, ranges)[0]
    if request.input == "uint8":
        graph = take_pixels(graph, float_graph.preprocessing)
    write_graph(graph, path.with_name(MODEL))
    return path, engine.build(path.with_name(MODEL), path, request.engine_options()).origin


def _time(
    workers: Mapping[str, WorkerSpec], timing: TimingOptions, report: Progress, needed: bool
) -> tuple[str, Speedup]:
    """Time the workers, the last of them in 8 bits; again where an answer is needed and there was none.

    Returns:
        The float precision that 8 bits gain least over, and what they gain.
    """
    from engines.speedup import speedup
    from engines.timing import alternate

    *floats, low = workers
    for attempt in range(ATTEMPTS):
        results = alternate(workers, replace(timing, rounds=timing.rounds * (attempt + 1)), report)
        gains = {high: speedup(results[high], results[low], (high, low)) for high in floats}
        if all(gain.measurable for gain in gains.values()) or not needed:
            break
    # one that is not measurable may be the fastest
    high = min(floats, key=lambda name: gains[name].median if gains[name].measurable else 0.0)
    return high, gains[high]
