"""`sit-deploy validate`: is this bundle's engine, on this machine, what was built and measured?"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.base import Progress
from sit_deploy import limits
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.calls import takes_options
from sit_deploy.errors import InputError
from sit_deploy.measure.evaluate import run_key
from sit_deploy.measure.parity import Hop, require
from sit_deploy.measure.resume import Notebook
from sit_deploy.models.data_config import FIELDS, from_options, override
from sit_deploy.outputs import can_be_reported
from sit_deploy.processes import WHOLE, Shard
from sit_deploy.schema import require_type
from sit_deploy.validation.labelled_options import LabelledOptions

if TYPE_CHECKING:
    from engines.layer_comparison import LayerComparison
    from sit_deploy.data.labelled import Labelled
    from sit_deploy.inference import Classifier
    from sit_deploy.measure.accuracy import Accuracy
    from sit_deploy.measure.neighbours import Neighbours
    from sit_deploy.preprocessing import Preprocessing
    from sit_deploy.processes import World
    from sit_deploy.validation.checks import Checked


@dataclass(frozen=True)
class ValidateRequest(LabelledOptions):
    """What to validate; the fields are the options of `sit-deploy validate`.

    Attributes:
        data: labelled images, a folder or the name of a data set.
        data_dir, split, image_key, label_key, images, max_damaged: which of them (`LabelledOptions`).
        resume: a file that says how far a run has come.
        engine: "onnxruntime" runs the graph of a TensorRT bundle on this CPU.
        max_accuracy_drop: points of top-1.
        min_agreement: percent.
        checkpoint: the weights, where they moved since the build.
        mean, std, crop_mode, crop_pct, interpolation, orientation: of the preprocessing, in place of the bundle's.
        layers: time each layer.
        debug: find the first layer that drifts.
    """

    bundle: Path
    resume: Path | None = None
    engine: str | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    checkpoint: Path | None = None
    threads: int | None = None
    device: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None
    layers: bool = False
    debug: bool = False

    def check(self) -> None:
        """Refuse what can be refused at once.

        Raises:
            InputError: an option that needs labelled images, without them; a number out of range.
        """
        if self.data is None and self._limits:
            raise InputError(
                "--max-accuracy-drop and --min-agreement need images with labels; pass --data DIR"
            )
        self.refuse_without_data("resume", *FIELDS)
        limits.check_ranges(
            self,
            images=(1, limits.IMAGES),
            max_damaged=(0, limits.IMAGES),
            max_accuracy_drop=(0, 100),
            min_agreement=(0, 100),
            threads=(1, limits.THREADS),
        )

    @property
    def _limits(self) -> list[str]:
        """The options of limits that are set."""
        names = ("max_accuracy_drop", "min_agreement")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]

    def preprocessing(self, bundle: Bundle) -> Preprocessing | None:
        """Return the preprocessing asked for in place of the bundle's, None where none is.

        Raises:
            InputError: a value out of range, or a limit with it: that is of the bundle as it is.
        """
        said = from_options(self)
        if not said:
            return None
        if self._limits:
            raise InputError(
                f"{self._limits[0]} is for the bundle as it is, and options of the preprocessing try another; leave one of them "
                "out, or build the bundle again with the preprocessing that is right"
            )
        return override(bundle.preprocessing(), said)


@dataclass(frozen=True)
class Validation:
    """What a validation measured.

    Attributes:
        engine: the kind that ran.
        golden: its outputs on the bundle's golden images against the reference's.
        checked: what labelled images say, None without them.
        preprocessing: of those images, where it is not the bundle's.
        layers: the time of each, and debug: the comparison layer by layer, None where not asked for.
        main: False in the processes of torchrun but the first, which hand in their counts and judge nothing.
        neighbours: what images say of embeddings, None without them.
        samples: these images, None without them.
    """

    request: ValidateRequest
    bundle: Bundle
    engine: str
    golden: Hop
    checked: Checked | None = None
    preprocessing: Preprocessing | None = None
    layers: dict[str, Any] | None = None
    debug: LayerComparison | None = None
    main: bool = True
    neighbours: Neighbours | None = None
    samples: Labelled | None = None

    @property
    def accuracy(self) -> Accuracy:
        """What labelled images say.

        Raises:
            InputError: there were none, or another process of torchrun's has the counts.
        """
        if self.checked is None:
            raise InputError(
                "no accuracy was measured; give labelled images as `data`, and ask the main process"
            )
        return self.checked.accuracy

    def require(self) -> None:
        """Hold the engine to the tolerance of its precision and to the request's limits.

        Raises:
            GateError: one of them is not kept, or cannot be judged on these images.
        """
        if not self.main:
            return
        require([self.golden], "do not use this engine here")
        if self.checked:
            self.checked.require(self.request.max_accuracy_drop, self.request.min_agreement)
        if self.neighbours:
            self.neighbours.require(self.request.max_accuracy_drop, self.request.min_agreement)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "bundle": str(self.request.bundle),
            "engine": self.engine,
            "golden": self.golden.to_dict(),
            "accuracy": self._accuracy(),
            "layers": self.layers,
            "debug": self.debug.to_dict() if self.debug else None,
            **(
                {
                    "neighbours": {
                        **self.neighbours.to_dict(),
                        **self._remarks(),
                    }
                }
                if self.neighbours
                else {}
            ),
        }

    def _remarks(self) -> dict[str, Any]:
        """Return what else to know of the images, and which of them could not be read and are not measured on."""
        assert self.samples is not None
        damaged = [one.to_dict() for one in self.samples.damaged.found]
        return {"notes": list(self.samples.remarks), "damaged": damaged}

    def _accuracy(self) -> dict[str, Any] | None:
        """Return what labelled images say, what was done to them, who says so, and how many lie on their side all the same."""
        from sit_deploy.data.ignored_orientation import ignored_orientation_note

        if self.checked is None:
            return None
        ours, sources = (
            self.bundle.preprocessing(),
            dict(self.bundle.manifest.preprocessing_source),
        )
        used, samples = self.preprocessing or ours, self.checked.samples
        for name in FIELDS if self.preprocessing else ():
            attribute = "resize" if name == "crop_pct" else name
            if getattr(used, attribute) != getattr(ours, attribute):
                sources[name] = "the options, against the bundle"
        return {
            **self.checked.accuracy.to_dict(self.bundle.classes),
            "measured_on": self.engine,
            "data": samples.name,
            "warning": self.checked.doubt.warning,
            **self._remarks(),
            "preprocessing": used.to_dict(),
            "preprocessing_source": sources,
            "preprocessing_overridden": self.preprocessing is not None,
            "turned": ignored_orientation_note(samples, used, "validate it, and build it again, with"),
        }


@takes_options(ValidateRequest, progress=lambda shown: shown.step)
def validate(request: ValidateRequest, progress: Progress | None = None) -> Validation:
    """Check a bundle on this machine: hashes, golden outputs and, given labelled images, accuracy.

    Args:
        request: what is to be checked, and how.
        progress: called with a step, how much of it is done, and of how much; in the main process alone.

    Returns:
        What was measured; `Validation.require` judges it.

    Raises:
        InputError: options that exclude each other, a damaged bundle, data that does not fit its classes, weights that are
            not there.
        engines.EngineError: the engine is missing, or does not run here.
        GateError: an engine that gives NaN or infinity.
    """
    from sit_deploy.inference import load
    from sit_deploy.measure.layers import bundle_layers
    from sit_deploy.validation.checks import check_golden
    from sit_deploy.validation.drift import compare_layers

    require_type(request, ValidateRequest, "a validation")
    request.check()
    bundle = load_bundle(request.bundle)
    own = bundle.manifest.engine.kind
    kind = request.engine or own
    embeds = request.data is not None and not bundle.manifest.has_logits
    if embeds:
        _check_embedding(request, bundle)
    if request.layers and kind != own:
        raise InputError("--layers is of the bundle's own engine; leave --engine out")
    preprocessing = request.preprocessing(bundle)
    samples = request.open_for(bundle)  # before anything is loaded: a wrong folder is told at once
    debug = compare_layers(bundle, kind, request.checkpoint) if request.debug else None
    device, layers = request.device, None
    with _world(request) as world:
        main = world is None or world.is_main
        if world and world.size > 1 and device is None and not engines.get(kind).on_cpu:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        with load(bundle, request.engine, threads=request.threads, device=device) as classifier:
            golden = check_golden(bundle, classifier)
            checked = neighbours = None
            report = progress if main else None
            if embeds and samples is not None:
                neighbours = _check_neighbours(request, bundle, samples, classifier, preprocessing, report)
            elif samples is not None:
                checked = _check_accuracy(request, bundle, samples, classifier, preprocessing, world, report)
        if request.layers and main:
            layers = bundle_layers(bundle, request.threads, device)
    return Validation(
        request, bundle, kind, golden, checked, preprocessing, layers, debug, main, neighbours, samples
    )


def _check_embedding(request: ValidateRequest, bundle: Bundle) -> None:
    """Refuse what an embedding bundle is not measured with.

    Raises:
        InputError: says so.
    """
    if not can_be_reported(one.name for one in bundle.outputs):
        raise InputError(
            f"{bundle.path} gives patches alone, and --data compares images by one vector each; build it with --outputs features"
        )
    if request.resume:
        raise InputError("--resume is for accuracy, and embeddings are compared in one run; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("embeddings are compared in one process; run it without torchrun")


def _check_neighbours(
    request: ValidateRequest,
    bundle: Bundle,
    samples: Labelled,
    classifier: Classifier,
    preprocessing: Preprocessing | None,
    progress: Progress | None,
) -> Neighbours:
    """Compare the bundle's first vector an image with the PyTorch model's, and their nearest neighbours.

    Raises:
        InputError: a limit of accuracy, and no labels.
    """
    from sit_deploy.measure.neighbours import NEEDS_LABELS, labels_tell, measure_neighbours
    from sit_deploy.models.outputs import with_outputs
    from sit_deploy.validation.reference import reference_logits, reference_model

    name = bundle.outputs[0].name
    files = samples.files
    if request.max_accuracy_drop is not None and files and not labels_tell([label for _, label in files]):
        raise InputError(NEEDS_LABELS)
    model = with_outputs(reference_model(bundle, request.checkpoint), (name,))
    return measure_neighbours(
        name,
        reference_logits(model),
        lambda images: classifier.outputs(images)[name],
        samples,
        preprocessing or bundle.preprocessing(),
        max(8, bundle.batch_size),
        progress,
        damaged=samples.damaged,
    )


def _world(request: ValidateRequest) -> contextlib.AbstractContextManager[World | None]:
    """Join the processes that torchrun started, where there is something to share; PyTorch is imported only then."""
    if request.data is None:
        return contextlib.nullcontext(None)
    from sit_deploy.processes import join_world

    return join_world("cpu")  # they exchange counts alone


def _check_accuracy(
    request: ValidateRequest,
    bundle: Bundle,
    samples: Labelled,
    classifier: Classifier,
    preprocessing: Preprocessing | None,
    world: World | None,
    progress: Progress | None,
) -> Checked | None:
    import torch

    from sit_deploy.validation.checks import ReferenceOptions, check_accuracy

    kind = request.engine or bundle.manifest.engine.kind
    device = request.device or ("cpu" if engines.get(kind).on_cpu else "cuda")
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    shard = world.shard if world else WHOLE
    notebook = _notebook(request, bundle, classifier, samples, shard) if request.resume else None
    reference = ReferenceOptions(request.checkpoint, device if on_gpu else "cpu", preprocessing)
    return check_accuracy(bundle, classifier, samples, reference, notebook, world, progress)


def _notebook(
    request: ValidateRequest, bundle: Bundle, classifier: Classifier, samples: Labelled, shard: Shard
) -> Notebook:
    """Return the file that says how far the run has come; every process but the first appends its number."""
    assert request.resume is not None
    path = request.resume if shard.rank == 0 else Path(f"{request.resume}.{shard.rank}")
    chosen = {name: str(value) for name, value in request.which_data.items()}
    runner, preprocessing = type(classifier.runner).__name__, request.preprocessing(bundle)
    facts = (bundle.manifest.digest, runner, str(request.data), chosen, len(samples), shard.rank, shard.size)
    facts += (repr(preprocessing),) if preprocessing else ()
    return Notebook(path, run_key(facts, samples.files))
