"""The engine of a build: what of a request it settles and refuses, its building, and its comparison where it runs here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.gpus import find_gpus
from engines.graph_file import input_specs, read_model
from engines.registry import with_precision
from sit_deploy.bundle import MODEL
from sit_deploy.errors import InputError
from sit_deploy.measure.parity import Hop, compare, require
from sit_deploy.pipeline.kernels import KERNELS, write_kernels
from sit_deploy.pipeline.lower import LoweredGraph
from sit_deploy.pipeline.request import AUTO, BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import EIGHT_BITS, TOLERANCE

if TYPE_CHECKING:
    import numpy as np

# benchmarks/runtime_peers.py: 1.05 to 1.4 times as fast, at 1 to 3 dB; with trained models 4 to 8 dB (docs/quantization.md)
_STEM_NOTE = "INT8 kernels for the stem too: --quantize default,stem may be a tenth to a third faster, at some accuracy"
# what to build where an engine has no kernels for a precision
_NEXT_BEST = {"bf16": ("fp32", "fp16"), "fp8": ("int8",)}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built.

    Attributes:
        runtime: that runs it.
        path: of its file, beside model.onnx.
        info: what its builder says of it.
        why: this runtime was chosen.
    """

    runtime: engines.Engine
    path: Path
    info: engines.EngineInfo
    why: str = ""

    @cached_property
    def runs_here(self) -> bool:
        """Whether this machine can run it."""
        return self.runtime.probe().can_run


def fit_request(request: BuildRequest, engine: engines.Engine) -> BuildRequest:
    """Return the request with what 8 bits leave to the engine: the type of the rest, and targets that have FP8."""
    if request.precision not in EIGHT_BITS:
        return request
    reason = untuned(request, engine)
    if request.tunes and reason:
        raise InputError(f"--quantize auto cannot be done: {reason}; pass --quantize default")
    if request.trained_thresholds:
        request = replace(request, quantize=None)
    elif request.quantize is None and reason is None:
        request = replace(request, quantize=AUTO)
    if not request.tunes and (given := _tuning_option(request)):
        why = (
            "the model was trained in 8 bits"
            if request.trained_thresholds
            else reason or "the groups are given"
        )
        raise InputError(f"{given} is for --quantize auto, and {why}; leave it out")
    if request.rest is None and not request.tunes:
        request = replace(request, rest=engine.precision_beside_8_bits)
    return replace(request, targets=engine.targets_with(request.precision, request.targets))


def untuned(request: BuildRequest, engine: engines.Engine) -> str | None:
    """Return why an engine's plan for 8 bits cannot be chosen by measuring here, as part of a sentence; None where it can."""
    if request.precision not in EIGHT_BITS:
        return None
    if request.precision != "int8" or not engine.on_cpu:
        other = "" if engine.on_cpu else " (--engine openvino or onnxruntime is for CPUs)"
        return f"plans are tuned for int8 on CPU engines alone, and this is {request.precision} for {engine.title}{other}"
    if not engine.probe().can_run:
        return f"{engine.title} does not run here"
    if request.calib_data is None and (request.checkpoint or request.calib_cache):
        return "there are no images to compare plans on, which --calib-data DIR gives"
    return None


def _tuning_option(request: BuildRequest) -> str | None:
    given = (name for name in ("tune_seconds", "min_sqnr") if getattr(request, name) is not None)
    return next((f"--{name.replace('_', '-')}" for name in given), None)


def check_engine(request: BuildRequest, engine: engines.Engine) -> None:
    """Refuse, before any work, what this engine cannot be built with."""
    if request.precision not in engine.precisions:
        wanted = _NEXT_BEST.get(request.precision, engine.precisions)
        others = [precision for precision in wanted if precision in engine.precisions] or engine.precisions
        raise InputError(
            f"{engine.title} has no {request.precision} kernels{' for a CPU' if engine.on_cpu else ''}; pass --engine "
            f"{with_precision(request.precision, on_cpu=engine.on_cpu)}, or --precision {' or '.join(others)}"
        )
    if reason := engine.lacks(request.precision):
        others = [one for one in ("fp32", "int8") if one != request.precision and not engine.lacks(one)]
        exact = "--engine onnxruntime, or " if request.precision in EIGHT_BITS else ""
        raise InputError(f"{reason}; pass {exact}--precision {' or '.join(others)}")
    if request.precision in EIGHT_BITS:
        _check_rest(request, engine)
    if request.allow_wider_kernels and not engine.tells_kernels:
        raise InputError(
            f"--allow-wider-kernels is for TensorRT and OpenVINO: {engine.title} does not tell its kernels; leave it out"
        )
    engine.check(request.engine_options())
    engine.check_opset(request.opset)


def _check_rest(request: BuildRequest, engine: engines.Engine) -> None:
    if request.high not in engine.rests:
        others = [rest for rest in engine.rests if not engine.lacks(rest)]
        raise InputError(
            f"{engine.title} does not compute {request.high} beside {request.precision}; pass --rest {' or '.join(others)}"
        )
    if reason := engine.lacks(request.high):
        raise InputError(f"{reason}; pass --rest fp32")


def build_engine(work: Work, engine: engines.Engine, why: str, folder: Path) -> BuiltEngine:
    """Build the engine of model.onnx in `folder`, beside it."""
    request = work.request
    if request.precision in EIGHT_BITS and engine.int8_convolutions and not request.quantize:
        work.note(f"{engine.title} has {_STEM_NOTE}")
    with work.step(f"Building the {engine.kind} engine") as report:
        path = folder / engine.filename
        info = engine.build(folder / MODEL, path, request.engine_options(), report)
        write_kernels(info, folder / KERNELS)
    return BuiltEngine(engine, path, info, why)


def tell_kernels(work: Work, built: BuiltEngine, lowered: LoweredGraph) -> BuiltEngine:
    """Return the engine with its kernels, asked for where it runs here and its builder did not tell them; they are kept beside it."""
    info, runtime = built.info, built.runtime
    asked = runtime.reports_types and work.request.profiling == "detailed"
    if info.kernels or not asked or not built.runs_here:
        return built
    graph = built.path.with_name(MODEL)
    feeds = {input_specs(read_model(graph))[0].name: _one_batch(work.request, lowered)}
    with work.step(f"Asking the {runtime.kind} engine for its kernels"):
        try:
            kernels, details = runtime.inspect_kernels(built.path, graph, feeds, origin=info.origin)
        except engines.EngineError as error:
            work.note(f"the kernels of the engine are not known: {error}")
            return built
    info = replace(info, kernels=kernels, details={**info.details, **details})
    write_kernels(info, built.path.with_name(KERNELS))
    return replace(built, info=info)


def _one_batch(request: BuildRequest, lowered: LoweredGraph) -> np.ndarray:
    """Return a batch of the size that the engine is tuned for."""
    return lowered.inputs[:1].repeat(request.usual_batch, axis=0)


def compare_engine(work: Work, built: BuiltEngine, lowered: LoweredGraph) -> dict[str, Any] | None:
    """Compare the engine with its graph, where it runs here; return what a TensorRT engine then tells of its layers."""
    from sit_deploy.inference import Classifier
    from sit_deploy.measure.layers import measure_layers

    request, runtime, origin = work.request, built.runtime, built.info.origin
    name = f"{runtime.kind} engine"
    if not built.runs_here:
        answer = runtime.probe()
        needs = "another GPU" if answer.foreign_gpu else "pycuda" if find_gpus() else "a GPU"
        note = f"built; to run, it needs {needs}"
        work.hops.append(Hop(name, note=note))
        return None
    with work.step(f"Running the {name}"):
        runner = runtime.load(built.path, threads=request.threads, origin=origin)
        with Classifier(runner, request.batch_range) as classifier:
            values = classifier.outputs(lowered.inputs)
        reference, tolerance = lowered.float_graph.compared.reference, TOLERANCE[request.precision]
        hop = compare(name, values, lowered.values, reference, tolerance)
        work.hops.append(hop)
        require(work.hops)
        if not runtime.reports_types or request.profiling == "none":
            return None
        images = _one_batch(request, lowered)
        return measure_layers(runtime, built.path, built.path.with_name(MODEL), images, origin=origin)
