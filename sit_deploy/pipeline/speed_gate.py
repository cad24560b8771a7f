"""Whether 8 bits are any faster: the engine is timed against one without them, turn about."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sit_deploy.bundle import MODEL
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.float_graph import FloatGraph
from sit_deploy.pipeline.work import Work
from sit_deploy.report.speedup_text import sentence

ROUNDS, SECONDS = 7, 0.5  # of the timing


def compare_speed(work: Work, built: BuiltEngine, float_graph: FloatGraph) -> dict[str, Any] | None:
    """Time the engine against one without 8 bits, turn about; None where the engine cannot run here, which a note says.

    Args:
        work: of the build; the other engine is built with the same options.
        built: the engine in 8 bits.
        float_graph: that both are made of.

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

    request, engine = work.request, built.runtime
    if not built.runs_here:
        work.note(
            f"whether {request.precision} is faster than {request.high} was not measured: the engine does not run here"
        )
        return None
    batch = request.dynamic_batch[1] if request.dynamic_batch else request.batch_size
    with (
        work.step(f"Timing {request.precision} against {request.high}") as report,
        tempfile.TemporaryDirectory(prefix="sit-deploy-") as other,
    ):
        source, higher = Path(other) / MODEL, Path(other) / engine.filename
        ranges = None
        if request.high == "fp16":
            images = float_graph.compared.normalised
            ranges = observe_float16_ranges(float_graph.graph, images, request.batch_range[1])
        graph = to_precision(float_graph.graph, request.high, ranges)[0]
        if request.input == "uint8":
            graph = take_pixels(graph, float_graph.preprocessing)
        write_graph(graph, source)
        theirs = engine.build(source, higher, request.engine_options()).origin
        timing = TimingOptions(ROUNDS, SECONDS, threads=request.threads)
        workers = {
            name: engine_worker(engine.kind, path, batch, timing, origin)
            for name, path, origin in (
                (request.high, higher, theirs),
                (request.precision, built.path, built.info.origin),
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
        work.note(sentence(low, high, gain, f"close other programs, and {again}"))
    if gain.slower:
        slower = (
            f"{low} is not faster than {high} on {engine.kind} here ({gain.median:.2f}× at batch {batch})"
        )
        if request.max_accuracy_drop is not None:
            raise NoGainError(NoGain.SPEED, f"{slower}; {high} was built instead")
        work.warn(f"do not ship {low}: {slower}; build with --precision {high}")
    return speed
