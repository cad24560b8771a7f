"""What is asked of an open engine: its golden outputs, and its accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from sit_deploy.bundle import GOLDEN, Bundle
from sit_deploy.data.labelled import Labelled, open_labelled, open_unlabelled
from sit_deploy.data.samples import spread_over
from sit_deploy.measure.accuracy import ENGINE, Accuracy
from sit_deploy.measure.baseline import Doubt, find_doubts
from sit_deploy.measure.evaluate import evaluate
from sit_deploy.measure.parity import Hop, compare_golden
from sit_deploy.measure.resume import Notebook
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import WHOLE, World


def check_golden(bundle: Bundle, classifier: Any) -> Hop:
    """Compare an open `inference.Classifier` with the reference's outputs that the bundle carries.

    Raises:
        InputError: outputs that everything agrees with, which prove nothing.
    """
    return compare_golden(
        classifier.outputs,
        *bundle.golden_outputs(),
        bundle.manifest.precision,
        random=bundle.manifest.weights.is_random,
        where=bundle.path / GOLDEN,
    )


@dataclass(frozen=True)
class Checked:
    """What labelled images say of an engine.

    Attributes:
        doubt: why the comparison itself may say little.
    """

    accuracy: Accuracy
    doubt: Doubt
    samples: Labelled

    def require(self, max_drop: float | None = None, min_agreement: float | None = None) -> None:
        """Hold the engine to limits, as `Accuracy.require` does.

        Raises:
            GateError: one of them is not kept, or cannot be judged on these images.
        """
        if max_drop is not None:
            self.doubt.require_sound("--max-accuracy-drop")
        self.accuracy.require(max_drop, min_agreement)


@dataclass(frozen=True)
class ReferenceOptions:
    """How the PyTorch model is run beside the engine.

    Attributes:
        checkpoint: its weights, where they moved since the build.
        device: where it runs.
        preprocessing: of both sides, in place of the bundle's.
    """

    checkpoint: Path | None = None
    device: str = "cpu"
    preprocessing: Preprocessing | None = None


def check_accuracy(
    bundle: Bundle,
    classifier: Any,
    samples: Labelled,
    reference: ReferenceOptions | None = None,
    notebook: Notebook | None = None,
    world: World | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Checked | None:
    """Measure reference and engine on labelled images.

    Args:
        bundle: whose engine it is.
        classifier: the open engine, an `inference.Classifier`.
        samples: the images.
        reference: how PyTorch is run.
        notebook: how far an earlier run came, to go on from.
        world: the processes that share the images; all but the first get None back.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        InputError: reference weights that are not there, or a notebook of another run.
        GateError: an engine that gives NaN or infinity.
    """
    from sit_deploy.validation.reference import reference_logits, reference_model

    reference = reference or ReferenceOptions()
    model = reference_model(bundle, reference.checkpoint)
    evaluation = evaluate(
        reference_logits(model, reference.device),
        {ENGINE: classifier.logits},
        samples,
        reference.preprocessing or bundle.preprocessing(),
        max(8, bundle.batch_size),
        progress,
        notebook=notebook,
        shard=world.shard if world else WHOLE,
        damaged=samples.damaged,
    )
    if world:
        evaluation = reduce(lambda a, b: a.merge(b), world.gather(evaluation))
        if not world.is_main:
            return None
        samples.damaged.recall(evaluation.damaged)
    accuracy = Accuracy.of(evaluation.tallies[ENGINE])
    manifest = bundle.manifest
    doubt = find_doubts(accuracy, manifest.weights, manifest.model, evaluation.guesses, samples)
    return Checked(accuracy, doubt, samples)


def open_labelled_for(
    bundle: Bundle, data: str | Path, images: int | None = None, **options: Any
) -> Labelled:
    """Open held-out images for a bundle's classes, under their own or none where it has no logits; `images` of them, evenly spread, or all.

    options: of `open_labelled`.
    """
    manifest = bundle.manifest
    count = manifest.model.num_classes if manifest.has_logits else None
    named = options.get("image_key") or options.get("label_key")  # which no folder has, as it is told
    flat = None if manifest.has_logits or named else open_unlabelled(data, options.get("split"))
    labelled = flat or open_labelled(data, manifest.classes, count, **options)
    return replace(labelled, samples=spread_over(labelled.samples, images))
