"""The accuracy of a build on labelled images, and the limit that it is held to (--max-accuracy-drop)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import MODEL
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.logits import REFERENCE_BATCH, torch_logits
from sit_deploy.pipeline.lower import LoweredGraph
from sit_deploy.pipeline.manifest import model_of, weights_of
from sit_deploy.pipeline.work import Work
from sit_deploy.report.paired import weigh_drop
from sit_deploy.report.reasons import Weight
from sit_deploy.report.verdict import equal_logits
from sit_deploy.report.verdict_text import by_chance_words

if TYPE_CHECKING:
    from sit_deploy.measure.accuracy import Accuracy


def measure_accuracy(
    work: Work, built: BuiltEngine, lowered: LoweredGraph, folder: Path
) -> dict[str, Any] | None:
    """Measure both sides on the labelled images; where the engine cannot run here, its graph stands in, and says so.

    Args:
        work: of the build.
        built: the engine.
        lowered: its graph.
        folder: of model.onnx.

    Returns:
        What the report says of it; None where there are no labelled images.

    Raises:
        GateError: more is lost than allowed, or nothing can be said of it.
    """
    from sit_deploy.inference import Classifier, graph_on_onnxruntime
    from sit_deploy.measure.accuracy import ENGINE, Accuracy
    from sit_deploy.measure.baseline import find_doubts
    from sit_deploy.measure.evaluate import evaluate

    if not work.samples:
        return None
    request, loaded = work.request, lowered.float_graph.loaded
    with work.step("Measuring accuracy") as report, contextlib.ExitStack() as stack:
        if built.runs_here:
            runner = built.runtime.load(built.path, threads=request.threads, origin=built.info.origin)
        else:
            runner = stack.enter_context(graph_on_onnxruntime(folder / MODEL))
        classifier = stack.enter_context(Classifier(runner, request.batch_range))
        evaluation = evaluate(
            lambda images: torch_logits(loaded.model, images),
            {ENGINE: classifier.logits},
            work.samples,
            lowered.preprocessing,
            REFERENCE_BATCH,
            report,
            damaged=work.damaged,
        )
    accuracy = Accuracy.of(evaluation.tallies[ENGINE])
    weights = weights_of(request, loaded)
    doubt = find_doubts(accuracy, weights, model_of(work, lowered), evaluation.guesses, work.samples)
    if doubt.warning:
        work.warn(f"the accuracy here is in doubt: {doubt.warning}")
    if not weights.is_random:  # which a note says; such a build is a rehearsal
        work.warn(*(f"the accuracy proves nothing: {chance.text}" for chance in accuracy.doubts()))
    if request.max_accuracy_drop is not None:
        doubt.require_sound("--max-accuracy-drop")
        accuracy.require(request.max_accuracy_drop, rehearsal=weights.is_random)
        if not weights.is_random and (words := _by_chance(accuracy, request.max_accuracy_drop)):
            work.warn(words)
    return {
        **accuracy.to_dict(lowered.float_graph.classes),
        "measured_on": f"{built.runtime.kind} engine" if built.runs_here else f"{MODEL} on ONNX Runtime",
        "data": work.samples.name,
        "warning": doubt.warning,
    }


def _by_chance(accuracy: Accuracy, limit: float) -> str | None:
    """Say so where a limit holds on these images and might not on others like them, as a report does: a single image keeps any limit."""
    if equal_logits(accuracy) or weigh_drop(accuracy, accuracy.drop, limit) is not Weight.MISSING:
        return None
    images = "1 image" if accuracy.images == 1 else f"{accuracy.images} images"
    return f"--max-accuracy-drop {limit:g} holds on {images} with {accuracy.drop:+.2f} points lost; {by_chance_words(accuracy, limit)}"
