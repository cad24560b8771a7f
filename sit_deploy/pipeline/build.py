"""`sit-deploy build`: checkpoint → deploy form → ONNX → precision → engine → bundle, every hop compared.

Nothing is written to the output folder until every hop is within tolerance.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.gpus import find_gpus
from engines.registry import with_precision
from sit_deploy.bundle import (
    CALIBRATION,
    GOLDEN,
    MODEL,
    Bundle,
    check_destination,
    load_bundle,
    staging,
)
from sit_deploy.errors import InputError
from sit_deploy.files import scratch
from sit_deploy.manifest import RANDOM, Batch, BuildFacts, EngineFacts, Model, Weights, write_manifest
from sit_deploy.measure.parity import Hop, compare, require
from sit_deploy.pipeline.float_graph import (
    REFERENCE_BATCH,
    Graph,
    Progress,
    Work,
    make_graph,
    torch_logits,
    with_input,
)
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.speed_gate import NoGainError, compare_speed, settle
from sit_deploy.precisions import EIGHT_BITS, TOLERANCE
from sit_deploy.report.kernels_text import eight_bit_products, kernels_note
from sit_deploy.text import WarningText, is_warning

if TYPE_CHECKING:
    from sit_deploy.models.load import LoadedModel

__all__ = ["BuildRequest", "build", "export"]

GOLDEN_IMAGES = 4
# benchmarks/runtime_peers.py: 1.05 to 1.4 times as fast, at 1 to 3 dB; with trained models 4 to 8 dB (docs/quantization.md)
_STEM_NOTE = "INT8 kernels for the stem too: --quantize default,stem may be a tenth to a third faster, at some accuracy"
# what to build where an engine has no kernels for a precision
_NEXT_BEST = {"bf16": ("fp32", "fp16"), "fp8": ("int8",)}
# fields of a configuration that a manifest has in other places
_ELSEWHERE = ("name", "aliases", "top1", "mean", "std", "crop_pct", "interpolation", "squash")


def build(request: BuildRequest, progress: Progress | None = None) -> Bundle:
    """Build a bundle, checked hop by hop, and move it into place whole.

    A build in 8 bits is timed in spawned processes where its engine runs: a script that calls this needs
    `if __name__ == "__main__":`.

    Raises:
        InputError: bad input: see each option's own checks; nothing is written.
        GateError: a hop or the accuracy is out of tolerance; nothing is written.
        engines.EngineError: the engine is missing, or cannot be built.
    """
    request = _require_request(request).completed()
    request.check()
    check_destination(request.output, request.force)
    engine, why = engines.select(request.engine)
    asked, request = request, _for_engine(request, engine)
    request.check()
    _check_engine(request, engine)
    report = progress or (lambda *_: None)
    with staging(request.output, request.force) as folder:
        work = Work(request, report)
        try:
            _make_bundle(work, engine, why, folder)
        except NoGainError as gave_up:
            for path in folder.iterdir():
                path.unlink()
            higher = replace(request.in_high_precision(), targets=asked.targets)
            _make_bundle(_instead(work, higher, gave_up), engine, why, folder)
    return load_bundle(request.output)


def _require_request(request: BuildRequest) -> BuildRequest:
    if not isinstance(request, BuildRequest):
        raise InputError(
            f"a build takes a BuildRequest, got {type(request).__name__}; make one of its options"
        )
    return request


def _instead(work: Work, higher: BuildRequest, gave_up: NoGainError) -> Work:
    """Return the work of building without 8 bits what was not worth building with them; the time spent counts."""
    note = str(gave_up)
    if work.request.precision in higher.output.name:
        note += f" (the folder's name is as it was asked for: {higher.output.name} holds {higher.precision})"
    return Work(higher, work.progress, seconds=work.seconds, notes=[*work.notes, note])


def export(request: BuildRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Write the ONNX graph alone to the file `request.output`; return what a bundle's report says of a graph.

    Raises:
        InputError, GateError: as `build`; the file appears whole or not at all.
    """
    request = _require_request(request).completed()
    request.check()
    path = request.output.absolute()
    if path.is_dir() or path.suffix != ".onnx":
        raise InputError(
            f"output {request.output} must be a file that ends in .onnx; pass for example -o model.onnx"
        )
    if path.exists() and not request.force:
        raise InputError(f"output {request.output} exists; pass --force to replace it, or choose another -o")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"folder {path.parent} does not exist or cannot be written; choose another with -o")
    work = Work(request, progress or (lambda *_: None))
    with scratch(path) as folder:
        made = with_input(work, make_graph(work, folder), folder)
        require(work.hops)
        (folder / MODEL).replace(path)
    return _graph_report(work, made)


def _for_engine(request: BuildRequest, engine: engines.Engine) -> BuildRequest:
    """Return the request with what 8 bits leave to the engine: the type of the rest, and targets that have FP8."""
    if request.precision not in EIGHT_BITS:
        return request
    if request.rest is None:
        request = replace(request, rest=engine.precision_beside_8_bits)
    return replace(request, targets=engine.targets_with(request.precision, request.targets))


def _check_engine(request: BuildRequest, engine: engines.Engine) -> None:
    """Refuse, before any work, what this engine cannot be built with."""
    if request.precision not in engine.precisions:
        wanted = _NEXT_BEST.get(request.precision, engine.precisions)
        others = [precision for precision in wanted if precision in engine.precisions] or engine.precisions
        raise InputError(
            f"{engine.title} has no {request.precision} kernels{' for a CPU' if engine.on_cpu else ''}; pass --engine "
            f"{with_precision(request.precision)}, or --precision {' or '.join(others)}"
        )
    engine.check(request.engine_options())


def _make_bundle(work: Work, engine: engines.Engine, why: str, folder: Path) -> None:
    import numpy as np

    from sit_deploy.report.page import write_build_report

    made = make_graph(work, folder)
    eight = None
    if made.lowered.quantizer is not None:
        made, eight = settle(work, made, folder)
        if engine.int8_convolutions and not work.request.quantize:
            work.notes.append(f"{engine.title} has {_STEM_NOTE}")
    made = with_input(work, made, folder)
    with work.step(f"Building the {engine.kind} engine") as report:
        engine_path = folder / engine.filename
        info = engine.build(folder / MODEL, engine_path, work.request.engine_options(), report)
    products = eight_bit_products(info.details)
    if products and not products.all_kept:
        work.notes.append(WarningText(kernels_note(products, work.request.precision)))
    layers = _engine_hop(work, engine, engine_path, made, info.origin)
    accuracy = _accuracy(work, engine, folder, made, info.origin) if work.samples else None
    if eight is not None:
        eight["speed"] = compare_speed(
            work, engine, engine_path, made, work.request.engine_options(), info.origin
        )
        if made.lowered.calibration is not None:
            made.lowered.calibration.save(folder / CALIBRATION)

    # evenly spread, since a folder's images come class by class: the first few would be of one class
    spread = np.linspace(0, len(made.inputs) - 1, min(GOLDEN_IMAGES, len(made.inputs))).round().astype(int)
    np.savez(folder / GOLDEN, images=made.inputs[spread], logits=made.reference[spread])
    manifest = _manifest(work, made, info, why).to_dict()
    report = {
        **manifest,
        **_graph_report(work, made),
        "quantization": eight,
        "engine_layers": layers,
        "accuracy": accuracy,
        "seconds": work.seconds,
    }
    write_build_report(folder, report)
    write_manifest(folder, manifest)


def _graph_report(work: Work, made: Graph) -> dict[str, Any]:
    """Return what there is to say of the graph and of how it was checked, as plain types."""
    from sit_deploy.graph.inspect import summarize

    notes = list(dict.fromkeys(work.notes))
    return {
        "weights": _weights(work.request, made.loaded).to_dict(),
        "preprocessing": made.preprocessing.to_dict(),
        "preprocessing_source": made.sources,
        "notes": notes,
        "warnings": [note for note in notes if is_warning(note)],
        "compared_on": made.image_source,
        "hops": [hop.to_dict() for hop in work.hops],
        "plan": {
            "counts": made.lowered.plan.counts,
            "held_back": [node.to_dict() for node in made.lowered.plan.held_back],
            "casts": made.lowered.plan.casts,
        },
        "graph": summarize(made.graph).to_dict(),
    }


def _weights(request: BuildRequest, loaded: LoadedModel) -> Weights:
    checkpoint = loaded.checkpoint
    if checkpoint is None:
        return Weights(source=RANDOM, seed=0)
    return Weights(
        source=str(checkpoint.path.absolute()),
        sha256=checkpoint.sha256,
        entry=checkpoint.source,
        key=request.checkpoint_key,
        ema=request.ema,
        top1=request.card.metrics.get("top1") if request.card else None,
    )


def _engine_hop(
    work: Work, engine: engines.Engine, engine_path: Path, made: Graph, origin: engines.EngineOrigin
) -> dict[str, Any] | None:
    """Compare the engine, where it runs here; returns what a TensorRT engine then tells of its layers."""
    name = f"{engine.kind} engine"
    if not engine.probe().can_run:
        note = "built; to run, it needs pycuda" if find_gpus() else "built; to run, it needs a GPU"
        work.hops.append(Hop(name, note=note))
        return None
    from sit_deploy.inference import Classifier
    from sit_deploy.measure.layers import measure_layers

    request = work.request
    with work.step(f"Running the {name}"):
        runner = engine.load(engine_path, threads=work.request.threads, origin=origin)
        with Classifier(runner, work.request.batch_range) as classifier:
            logits = classifier.logits(made.inputs)
        work.hops.append(compare(name, logits, made.logits, made.reference, TOLERANCE[request.precision]))
        require(work.hops)
        if not engine.tells_types or request.profiling == "none":
            return None
        batch = request.dynamic_batch[1] if request.dynamic_batch else request.batch_size
        images = made.inputs[:1].repeat(batch, axis=0)
        return measure_layers(engine, engine_path, engine_path.with_name(MODEL), images, origin=origin)


def _accuracy(
    work: Work, engine: engines.Engine, folder: Path, made: Graph, origin: engines.EngineOrigin
) -> dict[str, Any]:
    """Measure both sides on labelled images; where the engine cannot run here, its graph stands in, and says so."""
    from sit_deploy.inference import Classifier, graph_on_onnxruntime
    from sit_deploy.measure.accuracy import ENGINE, Accuracy
    from sit_deploy.measure.baseline import find_doubts
    from sit_deploy.measure.evaluate import evaluate

    model = made.loaded.model
    runs_here = engine.probe().can_run
    with work.step("Measuring accuracy") as report, contextlib.ExitStack() as stack:
        if runs_here:
            runner = engine.load(folder / engine.filename, threads=work.request.threads, origin=origin)
        else:
            runner = stack.enter_context(graph_on_onnxruntime(folder / MODEL))
        classifier = stack.enter_context(Classifier(runner, work.request.batch_range))
        found = evaluate(
            lambda images: torch_logits(model, images),
            {ENGINE: classifier.logits},
            work.samples,
            made.preprocessing,
            REFERENCE_BATCH,
            report,
        )
    accuracy = Accuracy.of(found.tallies[ENGINE])
    weights = _weights(work.request, made.loaded)
    doubt = find_doubts(accuracy, weights, _model(work, made), found.guesses, work.samples)
    if doubt.warning:
        work.notes.append(WarningText(f"the accuracy here is in doubt: {doubt.warning}"))
    random = made.loaded.checkpoint is None  # which a note says; such a build is a rehearsal
    if not random:
        work.notes += [
            WarningText(f"the accuracy proves nothing: {doubt.text}") for doubt in accuracy.doubts()
        ]
    limit = work.request.max_accuracy_drop
    if limit is not None:
        doubt.require_sound("--max-accuracy-drop")
        accuracy.require(limit, rehearsal=random)
    measured_on = f"{engine.kind} engine" if runs_here else f"{MODEL} on ONNX Runtime"
    return {
        **accuracy.to_dict(made.classes),
        "measured_on": measured_on,
        "data": work.samples.name,
        "warning": doubt.warning,
    }


def _calibration(made: Graph) -> dict[str, Any] | None:
    """Return how a graph in 8 bits came by its ranges, None for one that is not."""
    lowered = made.lowered
    if lowered.quantizer is None:
        return None
    if lowered.calibration is None:
        return {"method": "trained", "file": None}
    images = lowered.calibration.images
    return {
        "method": lowered.quantizer.method,
        "file": CALIBRATION,
        "images": images.count,
        "source": images.description,
        "images_key": images.key,
        "graph": lowered.calibration.graph,
    }


def _model(work: Work, made: Graph) -> Model:
    from sit_deploy.graph.inspect import count_macs

    request, model, config = work.request, made.loaded.model, made.loaded.config
    return Model(
        name=made.loaded.name,
        stages=list(model.stage_blocks),
        keeping_ratio=config.keeping_ratio,
        image_size=tuple(model.img_size),
        num_classes=model.num_classes,
        dist_token=model.has_dist_token,
        tokens=list(model.kept),
        parameters=sum(p.numel() for p in model.parameters()),
        macs=count_macs(made.graph) // (1 if request.dynamic_batch else request.batch_size),
        config={k: v for k, v in asdict(config).items() if k not in _ELSEWHERE},
        published_top1=config.top1,
    )


def _batch(request: BuildRequest) -> Batch:
    low, high = request.batch_range
    if request.dynamic_batch:
        return Batch(min=low, opt=request.dynamic_batch[1], max=high)
    return Batch(size=low)


def _manifest(work: Work, made: Graph, info: engines.EngineInfo, why: str) -> BuildFacts:
    from sit_deploy.doctor import versions

    request = work.request
    return BuildFacts(
        model=_model(work, made),
        classes=made.classes,
        preprocessing=made.preprocessing.to_dict(),
        preprocessing_source=made.sources,
        precision=request.precision,
        batch=_batch(request),
        opset=request.opset,
        engine=EngineFacts(
            kind=info.kind,
            why=why,
            version=info.version,
            file=info.filename,
            target=info.target,
            build_seconds=round(info.build_seconds, 2),
            details=info.details,
        ),
        weights=_weights(request, made.loaded),
        calibration=_calibration(made),
        compared_on=made.image_source,
        versions=versions(),
        command=request.command(info.kind),
    )
