"""`sit-deploy build`: checkpoint → deploy form → ONNX → precision → engine → bundle, every hop compared.

Nothing is written to the output folder until every hop is within tolerance.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import engines
from engines.cpu import cpu_count
from sit_deploy.bundle import (
    CALIBRATION,
    GOLDEN,
    MODEL,
    TIMINGS,
    Bundle,
    check_destination,
    load_bundle,
    staging,
)
from sit_deploy.calls import takes_options
from sit_deploy.errors import InputError
from sit_deploy.files import scratch
from sit_deploy.manifest import write_manifest
from sit_deploy.measure.parity import require
from sit_deploy.performance import more_threads_than_cpus
from sit_deploy.pipeline.accuracy_budget import keep_budget, require_tolerance
from sit_deploy.pipeline.accuracy_gate import measure_accuracy
from sit_deploy.pipeline.engine import (
    build_engine,
    check_engine,
    compare_engine,
    fit_request,
    tell_kernels,
    untuned,
)
from sit_deploy.pipeline.fallback import NoGainError, without_8_bits
from sit_deploy.pipeline.kernel_gate import require_kernels
from sit_deploy.pipeline.lower import LoweredGraph, make_lowered_graph
from sit_deploy.pipeline.manifest import build_facts, graph_report, quantization_report
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_files, check_given_files, check_request
from sit_deploy.pipeline.sensitivity import Sensitivity
from sit_deploy.pipeline.speed_gate import compare_speed
from sit_deploy.pipeline.timings import check_timings
from sit_deploy.pipeline.uint8_input import with_input
from sit_deploy.pipeline.work import Progress, Work
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.report.build_types import GraphReport
from sit_deploy.schema import require_type
from sit_deploy.text import file_name

__all__ = ["BuildRequest", "build", "export"]

GOLDEN_IMAGES = 4


@takes_options(BuildRequest, progress=lambda shown: shown.step)
def build(request: BuildRequest, progress: Progress | None = None) -> Bundle:
    """Build a bundle, checked hop by hop, and move it into place whole.

    Args:
        request: what to build.
        progress: is called with a step, how far it has come and how far it goes; 0 of 0 where that is not known.

    A build in 8 bits is timed in spawned processes where its engine runs: a script that calls this needs
    `if __name__ == "__main__":`.

    Raises:
        InputError: bad input: see each option's own checks; nothing is written.
        GateError: a hop or the accuracy is out of tolerance, or the engine's kernels lack the precision; nothing is written.
        engines.EngineError: the engine is missing, or cannot be built.
    """
    require_type(request, BuildRequest, "a build")
    check_given_files(request)
    request = request.named()
    if request.awaits_weights:  # whatever can be refused without them is refused before they are fetched
        _plan(request)
        check_files(request)
    report = progress or (lambda *_: None)
    asked, request, engine, why = _plan(request.completed(progress=report))
    if request.tunes:
        check_timings(request)
    reason = untuned(asked, engine)
    with staging(request.output, request.force) as folder:
        work = Work(request, report, engine=engine)
        if reason and asked.quantize is None and request.trained_thresholds is None:
            work.note_of_8_bits(f"the default groups of layers are in {request.precision}: {reason}")
        if (
            request.precision in EIGHT_BITS
            and engine.on_cpu
            and (request.threads or 0) > (here := cpu_count())
        ):
            crowd = more_threads_than_cpus(request.threads, here)
            work.warn(f"8 bits are timed here, where {crowd}: build it on the machine that will serve")
        try:
            _make_bundle(work, engine, why, folder)
        except NoGainError as error:
            for path in folder.iterdir():
                path.unlink()
            higher = replace(request.in_high_precision(error.instead), targets=asked.targets)
            _make_bundle(without_8_bits(work, higher, error), engine, why, folder)
    return load_bundle(request.output)


@takes_options(BuildRequest, progress=lambda shown: shown.step)
def export(request: BuildRequest, progress: Progress | None = None) -> GraphReport:
    """Write the ONNX graph alone to the file `request.output`, MODEL.onnx if that is None.

    Args:
        request: what to export.
        progress: as of `build`.

    Returns:
        What a bundle's report says of a graph and of how it was checked.

    Raises:
        InputError, GateError: as `build`; the file appears whole or not at all.
    """
    require_type(request, BuildRequest, "a build")
    request = ready_to_export(request, progress)
    path = request.output.absolute()
    work = Work(request, progress or (lambda *_: None))
    with scratch(path) as folder:
        lowered = with_input(work, make_lowered_graph(work, folder), folder)
        require(work.hops)
        (folder / MODEL).replace(path)
    return GraphReport.from_dict(graph_report(work, lowered))


def ready_to_export(request: BuildRequest, progress: Progress | None = None) -> BuildRequest:
    """Return a request to export, checked, its output named and its weights here; arguments and errors as of `export`."""
    check_given_files(request)
    request = request.named()
    if request.awaits_weights:
        _check_export(request)
        check_files(request)
    return _check_export(request.completed(progress=progress))


def _plan(request: BuildRequest) -> tuple[BuildRequest, BuildRequest, engines.Engine, str]:
    """Check a request; return it, the same as its engine has it, the engine, and why it is that one."""
    check_request(request)
    if request.output is None and request.model:
        request = replace(request, output=Path(f"{file_name(request.config.name)}-{request.precision}"))
    if request.output is not None:
        check_destination(request.output, request.force)
    engine, why = engines.select(request.engine)
    return request, fit_to_engine(request, engine), engine, why


def fit_to_engine(request: BuildRequest, engine: engines.Engine) -> BuildRequest:
    """Return a request, checked already, as an engine has it.

    Raises:
        InputError, engines.EngineError: this engine cannot be built so.
    """
    fitted = fit_request(request, engine)
    check_request(fitted)
    check_engine(fitted, engine)
    return fitted


def _check_export(request: BuildRequest) -> BuildRequest:
    """Return a request to export that can be, its output named."""
    check_request(request)
    if request.tunes or request.min_sqnr is not None or request.tune_seconds is not None:
        raise InputError(
            "a graph alone is not timed: --quantize auto is for `sit-deploy build`; pass --quantize default, or groups"
        )
    if request.output is None and request.model:
        request = replace(request, output=Path(f"{file_name(request.config.name)}.onnx"))
    if request.output is None:  # until weights with a card name the model
        return request
    path = request.output.absolute()
    if path.is_dir() or path.suffix != ".onnx":
        raise InputError(
            f"output {request.output} must be a file that ends in .onnx; pass for example -o model.onnx"
        )
    if path.exists() and not request.force:
        raise InputError(f"output {request.output} exists; pass --force to replace it, or choose another -o")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"folder {path.parent} does not exist or cannot be written; choose another with -o")
    return request


def _make_bundle(work: Work, engine: engines.Engine, why: str, folder: Path) -> None:
    from sit_deploy.report.page import write_build_report

    lowered, quantization = make_lowered_graph(work, folder), None
    if lowered.quantization is not None:
        lowered, quantization = _fit_quantization(work, lowered, folder)
    lowered = with_input(work, lowered, folder)
    built = tell_kernels(work, build_engine(work, engine, why, folder), lowered)
    require_kernels(work, built.info.details, lowered)
    layers = compare_engine(work, built, lowered)
    accuracy = measure_accuracy(work, built, lowered, folder)
    if quantization is not None:
        best = lowered.tuning.best_float if lowered.tuning else None
        quantization["speed"] = compare_speed(work, built, lowered.float_graph, best)
        if lowered.quantization.calibration is not None:
            lowered.quantization.calibration.save(folder / CALIBRATION)
    if work.tuning is not None:
        work.tuning.timings.save(folder / TIMINGS)
    _write_golden(folder / GOLDEN, lowered)
    manifest = build_facts(work, lowered, built).to_dict()
    request, gave_up = work.request, work.tuning is not None and quantization is None
    report = {
        **manifest,
        **graph_report(work, lowered),
        "quantization": quantization,
        **({"tuning": work.tuning.given_up(request.precision)} if gave_up else {}),
        "engine_layers": layers,
        "accuracy": accuracy,
        "seconds": work.seconds,
    }
    write_build_report(folder, report)
    write_manifest(folder, manifest)


def _fit_quantization(work: Work, lowered: LoweredGraph, folder: Path) -> tuple[LoweredGraph, dict[str, Any]]:
    """Return the graph whose plan keeps the accuracy budget, and what the report says of 8 bits."""
    sensitivity = Sensitivity(work, lowered)
    if work.request.sensitivity:
        sensitivity.noise()
    if lowered.tuning is not None and lowered.tuning.settled:
        tries = lowered.tuning.tries
        require_tolerance(work)
    else:
        lowered, tries = keep_budget(work, lowered, sensitivity, folder)
    return lowered, quantization_report(work, lowered, sensitivity, tries)


def _write_golden(path: Path, lowered: LoweredGraph) -> None:
    """Write some of the compared images, and the reference's outputs of them."""
    import numpy as np

    # evenly spread, since a folder's images come class by class: the first few would be of one class
    count = len(lowered.inputs)
    spread = np.linspace(0, count - 1, min(GOLDEN_IMAGES, count)).round().astype(int)
    reference = lowered.float_graph.compared.reference
    np.savez(
        path, images=lowered.inputs[spread], **{name: values[spread] for name, values in reference.items()}
    )
