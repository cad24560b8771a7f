"""From a checkpoint to the graph of the precision asked for, every hop compared: the part that `build` and `export` share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.bundle import MODEL
from sit_deploy.errors import InputError
from sit_deploy.graph.write import write_graph
from sit_deploy.measure.parity import Hop, agreement_note, compare, reference_fault, require
from sit_deploy.pipeline.request import CALIBRATION_IMAGES, COMPARED_IMAGES, BuildRequest
from sit_deploy.precisions import EIGHT_BITS, TOLERANCE
from sit_deploy.text import shown

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from sit_deploy.data.labelled import Labelled
    from sit_deploy.models.data_config import Choice
    from sit_deploy.models.load import LoadedModel
    from sit_deploy.pipeline.lower import Exported, Lowered
    from sit_deploy.preprocessing import Preprocessing

Progress = Callable[[str, int, int], None]

REFERENCE_BATCH = 8  # images the PyTorch model takes at once


@dataclass
class Work:
    """What the steps of one build share: its request, how it shows progress, and what it has to tell so far."""

    request: BuildRequest
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    samples: Labelled | None = None  # of --val-data

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Progress]:
        """Show a step, time it, and give it a progress callback of its own."""
        started = time.perf_counter()
        self.progress(text, 0, 0)
        # one more than the inner total: the step ends with its block, not with the inner work
        yield lambda _, done, total: self.progress(text, done if total else 0, total + 1 if total else 0)
        self.progress(text, 1, 1)
        seconds = time.perf_counter() - started
        self.seconds[text] = round(self.seconds.get(text, 0.0) + seconds, 2)  # a step may be taken again


@dataclass(frozen=True)
class Graph:
    """What export gives: the model, the images it was compared on with its reference logits, the float32 graph, and the
    one in the precision asked for.

    preprocessing: up to what the graph takes. sources: who says each part of it (`models.data_config`). pixels, images: the same pictures as uint8 (n, H, W, 3) and normalised,
    float32 (n, 3, H, W).
    """

    loaded: LoadedModel
    preprocessing: Preprocessing
    sources: dict[str, str]
    classes: list[str] | None
    pixels: np.ndarray
    images: np.ndarray
    image_source: str
    reference: np.ndarray
    exported: Exported
    lowered: Lowered | None = None

    @property
    def graph(self) -> onnx.ModelProto:
        """The graph in the precision asked for."""
        return self.lowered.graph

    @property
    def logits(self) -> np.ndarray:
        """Its logits on the images."""
        return self.lowered.logits

    @property
    def inputs(self) -> np.ndarray:
        """The images as the graph takes them."""
        return self.pixels if self.preprocessing.takes_pixels else self.images


def make_graph(work: Work, folder: Path) -> Graph:
    """Write model.onnx, in the precision asked for, into `folder`, every hop up to it compared."""
    from sit_deploy.pipeline.lower import lower

    made = make_float_graph(work, folder)
    return replace(made, lowered=lower(work, made.exported, made.preprocessing, folder))


def make_float_graph(work: Work, folder: Path) -> Graph:
    """Write the float32 graph into `folder` as model.onnx, every hop up to it compared."""
    from sit_deploy.pipeline.lower import Exported

    request = work.request
    with work.step(f"Loading {request.model}"):
        loaded, choice, classes = load_request(work)
        preprocessing = choice.preprocessing
    with work.step("Preparing images"):
        pixels, image_source = _images(work, preprocessing.raw)
        images = preprocessing.normalise(pixels)
    with work.step("PyTorch reference"):
        reference = torch_logits(loaded.model, images)
        if fault := reference_fault(reference, images):
            raise InputError(f"the PyTorch model itself gives {fault}; check its weights")
        if loaded.checkpoint is not None and (note := agreement_note(reference)):
            work.notes.append(f"{note} (on {image_source})")
    with work.step("Deploy form"):
        deploy, logits = _deploy(work, loaded, images, reference)
    with work.step("Exporting to ONNX"):
        graph = _export(request, loaded, deploy)
        del deploy
        logits = _check_graph(work, graph, folder, images, logits, reference)
    exported = Exported(graph, images, logits, reference)
    return Graph(
        loaded, preprocessing, choice.sources, classes, pixels, images, image_source, reference, exported
    )


def with_input(work: Work, made: Graph, folder: Path) -> Graph:
    """Return the graph with the input asked for: uint8 puts the normalisation into model.onnx and compares it again."""
    from sit_deploy.graph import lint
    from sit_deploy.graph.pixels import take_pixels
    from sit_deploy.graph.simulate import simulate

    request = work.request
    if request.input == "float32":
        return made
    with work.step("Putting the normalisation into the graph"):
        graph = take_pixels(made.graph, made.preprocessing)
        lint.check(graph, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
        write_graph(simulate(graph), folder / "simulated.onnx")  # as the graph before it was compared
        logits = graph_logits(folder / "simulated.onnx", made.pixels, request.batch_range)
        (folder / "simulated.onnx").unlink()
        write_graph(graph, folder / MODEL)
        tolerance = TOLERANCE[request.precision]
        work.hops.append(compare("uint8 input", logits, made.logits, made.reference, tolerance))
        require(work.hops)
    lowered = replace(made.lowered, graph=graph, logits=logits)
    return replace(made, lowered=lowered, preprocessing=made.preprocessing.raw)


def load_request(work: Work) -> tuple[LoadedModel, Choice, list[str] | None]:
    """Return the model, its preprocessing and who says it, and its classes; opens the labelled images."""
    from sit_deploy.data.class_names import read_class_names
    from sit_deploy.data.labelled import open_labelled
    from sit_deploy.models.load import load_model

    request = work.request
    loaded = load_model(
        request.model,
        request.checkpoint,
        request.image_size,
        request.num_classes,
        request.ema,
        stages=request.stages,
        keeping_ratio=request.keeping_ratio,
        checkpoint_key=request.checkpoint_key,
    )
    work.notes += loaded.notes
    card = request.card
    classes = list(card.classes) if card and card.classes else None
    if classes and len(classes) == 1:  # of one output, which is two now
        classes = None
    if request.labels:
        classes = read_class_names(request.labels, loaded.model.num_classes)
    if request.val_data:
        work.samples = open_labelled(
            request.val_data, classes, loaded.model.num_classes, **request.val_options
        )
        work.notes += [f"--val-data: {note}" for note in work.samples.notes]
    return loaded, _choose(work, loaded), classes


def _choose(work: Work, loaded: LoadedModel) -> Choice:
    """Return the preprocessing that the options, the model card, the checkpoint itself or the model's name say."""
    from sit_deploy.models.data_config import Source, choose, from_card, from_name, from_options
    from sit_deploy.models.trainer_config import from_checkpoint

    request, config = work.request, loaded.config
    configs = [from_options(request)]
    if request.card:
        configs.append(from_card(request.card))
    if loaded.checkpoint:
        configs += from_checkpoint(loaded.checkpoint.path)
    choice = choose(loaded.model.img_size[0], configs, from_name(config), "stored")
    work.notes += choice.notes
    named = [name for name in ("mean", "std") if choice.deciding[name].source is Source.MODEL_NAME]
    if loaded.checkpoint and named:
        work.notes.append(
            f"{loaded.checkpoint.path.name} does not say what its images were like, so {' and '.join(named)} are from "
            f"{from_name(config).words}; if it was trained otherwise, pass {' and '.join(f'--{name}' for name in named)}"
        )
    if config.squash and not request.card:
        work.notes.append(
            f"{config.name} was published for images squeezed into a square; here they are cropped at the centre"
        )
    return choice


def _images(work: Work, preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    """Return the images that the comparisons run on, as the preprocessing gives them, and where they are from.

    Notes pictures that the preprocessing leaves lying, among these, those to calibrate on and the labelled ones.
    """
    from sit_deploy.data.batches import batches
    from sit_deploy.data.orientation import ignored_orientation_note
    from sit_deploy.data.samples import spread
    from sit_deploy.data.splits import find_training_images
    from sit_deploy.data.synthetic import synthetic_images

    request = work.request
    count = request.calib_images or COMPARED_IMAGES
    if request.precision in EIGHT_BITS:  # --calib-images is for the calibration, which holds a few at a time
        count = COMPARED_IMAGES
    labelled = work.samples or []
    used = [path for path, _ in getattr(labelled, "files", None) or ()]
    if request.calib_data:
        where, found = find_training_images(request.calib_data)
        sources: list[Any] = spread(found.images, count)
        origin = f"{len(sources)} of {len(found.images)} images in {shown(where)}"
        work.notes += [f"--calib-data: {found.note}"] if found.note else []
        many = request.calib_images or CALIBRATION_IMAGES
        used += spread(found.images, many) if request.precision in EIGHT_BITS else sources
    else:
        sources = synthetic_images(count)
        origin = f"{count} synthetic images (pass --calib-data for your own)"
    used = list(dict.fromkeys(used))
    for pictures in (used, [] if getattr(labelled, "files", None) else labelled):
        note = ignored_orientation_note(pictures, preprocessing, "build it with")
        work.notes += [note] if note else []
    ((images, _),) = batches(sources, preprocessing, len(sources))
    return images, origin


def torch_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Return the logits of a PyTorch model, float32 (n, classes)."""
    import numpy as np
    import torch

    with torch.inference_mode():
        parts = torch.from_numpy(images).split(REFERENCE_BATCH)
        return np.concatenate([model(part).numpy() for part in parts])


def _deploy(
    work: Work, loaded: LoadedModel, images: np.ndarray, reference: np.ndarray
) -> tuple[Any, np.ndarray]:
    from sit_deploy.graph.deploy_form import to_deploy_form

    deploy = to_deploy_form(loaded.model)
    logits = torch_logits(deploy, images)
    work.hops.append(compare("deploy form", logits, reference, reference, TOLERANCE["fp32"]))
    require(work.hops)
    return deploy, logits


def _export(request: BuildRequest, loaded: LoadedModel, deploy: Any) -> onnx.ModelProto:
    from sit_deploy.graph.export import BATCH, export_onnx

    batch = BATCH if request.dynamic_batch else request.batch_size
    return export_onnx(deploy, loaded.model.img_size, batch=batch, opset=request.opset, name=loaded.name)


def _check_graph(
    work: Work,
    graph: onnx.ModelProto,
    folder: Path,
    images: np.ndarray,
    previous: np.ndarray,
    reference: np.ndarray,
) -> np.ndarray:
    """Lint the exported graph and compare it; at the smallest and the largest batch where the batch is open."""
    from sit_deploy.graph import lint

    lint.check(graph, max_opset=work.request.opset, dynamic_batch=bool(work.request.dynamic_batch))
    write_graph(graph, folder / MODEL)
    smallest, largest = work.request.batch_range
    logits = graph_logits(folder / MODEL, images, (smallest, largest))
    work.hops.append(compare("ONNX fp32", logits, previous, reference, TOLERANCE["fp32"], precision="fp32"))
    if smallest != largest:
        single = graph_logits(folder / MODEL, images, (smallest, smallest))
        work.hops.append(
            compare(f"ONNX fp32, batch {smallest}", single, logits, reference, TOLERANCE["fp32"])
        )
    require(work.hops)
    return logits


def graph_logits(path: Path, images: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    """Return the logits of a graph on ONNX Runtime, float32 (n, classes)."""
    from sit_deploy.inference import Classifier

    with Classifier(engines.get("onnxruntime").load(path), batch) as classifier:
        return classifier.logits(images)
