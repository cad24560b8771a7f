"""What is asked of an open engine: its golden outputs, and its accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from sit_deploy.bundle import GOLDEN, Bundle
from sit_deploy.data.labelled import Labelled, open_labelled
from sit_deploy.data.samples import spread_over
from sit_deploy.errors import InputError
from sit_deploy.measure.accuracy import ENGINE, Accuracy
from sit_deploy.measure.baseline import Doubt, find_doubts
from sit_deploy.measure.evaluate import evaluate, run_key
from sit_deploy.measure.parity import Hop, agreement_note, compare, reference_fault
from sit_deploy.measure.resume import Notebook
from sit_deploy.precisions import TOLERANCE
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import WHOLE, World


def check_golden(bundle: Bundle, classifier: Any) -> Hop:
    """Compare an open `inference.Classifier` with the reference logits that the bundle carries.

    Raises:
        InputError: logits that everything agrees with, which prove nothing.
    """
    images, reference = bundle.golden()
    if fault := reference_fault(reference, images):
        raise InputError(f"{bundle.path / GOLDEN} holds {fault}; build the bundle again from whole weights")
    note = agreement_note(reference) if not bundle.manifest.weights.is_random else ""
    tolerance = TOLERANCE[bundle.manifest.precision]
    return compare("golden output", classifier.logits(images), reference, reference, tolerance, note)


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


def check_accuracy(
    bundle: Bundle,
    classifier: Any,
    data: Path | str,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    images: int | None = None,
    resume: Path | None = None,
    world: World | None = None,
    reference_device: str = "cpu",
    preprocessing: Preprocessing | None = None,
    **options: Any,
) -> Checked | None:
    """Measure reference and engine on labelled images, which `open_labelled` takes, with its options.

    Args:
        images: of so many of them, evenly spread; all by default.
        resume: a file that says how far a run has come; every process but the first appends its number.
        world: the processes that share the images; all but the first get None back.
        reference_device: where PyTorch runs.
        preprocessing: of both sides, in place of the bundle's.

    Raises:
        InputError: a data set that does not fit the classes, reference weights that are not there, or --resume of another
            run.
        GateError: an engine that gives NaN or infinity.
    """
    from sit_deploy.validation.reference import reference_logits, reference_model

    manifest = bundle.manifest
    samples = open_labelled_for(bundle, data, images, **options)
    shard = world.shard if world else WHOLE
    notebook = None
    if resume is not None:
        kind = type(classifier.runner).__name__
        chosen = {name: str(value) for name, value in options.items()}
        facts = (manifest.digest, kind, str(data), chosen, len(samples), shard.rank, shard.size)
        facts += (repr(preprocessing),) if preprocessing else ()
        notebook = Notebook(
            resume if shard.rank == 0 else Path(f"{resume}.{shard.rank}"), run_key(facts, samples.files)
        )
    model = reference_model(bundle, checkpoint)
    found = evaluate(
        reference_logits(model, reference_device),
        {ENGINE: classifier.logits},
        samples,
        preprocessing or bundle.preprocessing(),
        max(8, bundle.batch_size),
        progress,
        notebook=notebook,
        shard=shard,
    )
    if world:
        found = reduce(lambda a, b: a.merge(b), world.gather(found))
        if not world.is_main:
            return None
    accuracy = Accuracy.of(found.tallies[ENGINE])
    doubt = find_doubts(accuracy, manifest.weights, manifest.model, found.guesses, samples)
    return Checked(accuracy, doubt, samples)


def open_labelled_for(
    bundle: Bundle, data: str | Path, images: int | None = None, **options: Any
) -> Labelled:
    """Open held-out images for a bundle's classes; `images` of them, evenly spread, or all. options: of `open_labelled`."""
    manifest = bundle.manifest
    found = open_labelled(data, manifest.classes, manifest.model.num_classes, **options)
    return replace(found, samples=spread_over(found.samples, images))
