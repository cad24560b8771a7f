"""From a checkpoint to the exported float32 graph: load, deploy form, export; every hop compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import MODEL
from sit_deploy.errors import InputError
from sit_deploy.graph.write import write_graph
from sit_deploy.measure.parity import agreement_note, compare, reference_fault, require
from sit_deploy.outputs import DEFAULT, LOGITS, Output, listing
from sit_deploy.pipeline.classes import class_names
from sit_deploy.pipeline.logits import graph_outputs, torch_outputs
from sit_deploy.pipeline.request import CALIBRATION_IMAGES, COMPARED_IMAGES, BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import EIGHT_BITS, FLOATS, TOLERANCE
from sit_deploy.text import shown

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from sit_deploy.models.data_config import Choice
    from sit_deploy.models.load import LoadedModel
    from sit_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class ComparedImages:
    """The images that every hop is compared on.

    Attributes:
        pixels: uint8 (n, H, W, 3).
        normalised: the same pictures, float32 (n, 3, H, W).
        source: where they are from, for people.
        reference: PyTorch's outputs of them by name.
    """

    pixels: np.ndarray
    normalised: np.ndarray
    source: str
    reference: dict[str, np.ndarray]


@dataclass(frozen=True)
class FloatGraph:
    """The exported float32 graph, with the model that it is of.

    Attributes:
        loaded: the PyTorch model, its configuration and its checkpoint.
        preprocessing: up to what the graph takes.
        sources: who says each part of it (`models.data_config`).
        classes: names, in label order.
        compared: the images that it was compared on.
        graph: the exported graph.
        values: its outputs of the compared images.
        outputs: what it gives.
        passed_through: which parts are as PyTorch's exporter writes them, and why; None where all were rewritten.
    """

    loaded: LoadedModel
    preprocessing: Preprocessing
    sources: dict[str, str]
    classes: list[str] | None
    compared: ComparedImages
    graph: onnx.ModelProto
    values: dict[str, np.ndarray]
    outputs: tuple[Output, ...]
    passed_through: str | None = None


def make_float_graph(work: Work, folder: Path) -> FloatGraph:
    """Write the float32 graph into `folder` as model.onnx, every hop up to it compared."""
    from sit_deploy.graph.deploy_form import passed_through

    request = work.request
    with work.step(f"Loading {request.model}"):
        loaded, choice, classes = load_request(work)
        preprocessing = choice.preprocessing
    with work.step("Preparing images"):
        pixels, image_source = _images(work, preprocessing.raw)
        images = preprocessing.normalise(pixels)
    with work.step("PyTorch reference"):
        names = work.outputs
        reference = _reference(loaded, images, names)
        if fault := reference_fault(reference, images):
            raise InputError(f"the PyTorch model itself gives {fault}; check its weights")
        if loaded.checkpoint is not None and (note := agreement_note(reference)):
            work.note(f"{note} (on {image_source})")
    compared = ComparedImages(pixels, images, image_source, reference)
    with work.step("Deploy form"):
        deploy, values = _deploy(work, loaded, compared)
        if passed := passed_through(deploy):
            work.note(f"deployed as PyTorch writes it: {passed}")
    with work.step("Exporting to ONNX"):
        graph = _export(request, loaded, deploy)
        if request.precision in FLOATS:
            from sit_deploy.graph.norms import float_form

            graph = float_form(graph, work.engine)
        del deploy
        values = _check_graph(work, graph, folder, compared, values)
    outputs = tuple(Output(name, array.shape[1:]) for name, array in reference.items())
    classes = classes if LOGITS in names else None
    return FloatGraph(
        loaded, preprocessing, choice.sources, classes, compared, graph, values, outputs, passed
    )


def _reference(loaded: LoadedModel, images: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return PyTorch's outputs; refuses a model whose arguments make one that cannot run, which timm does not look at."""
    from sit_deploy.models.outputs import with_outputs
    from sit_deploy.models.timm_vit import NOT_MADE

    try:
        return torch_outputs(with_outputs(loaded.model, names), images, names)
    except NOT_MADE as error:
        if ":" not in loaded.name or "allocate memory" in str(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:150]
        raise InputError(
            f"'{loaded.name}' is made, but does not run ({reason}); check what follows the colon"
        ) from None


def _output_names(work: Work, loaded: LoadedModel) -> tuple[str, ...]:
    """Return the outputs asked for, or a model's own.

    Raises:
        InputError: it has not all of those asked for.
    """
    from sit_deploy.models.outputs import check_outputs, default_outputs

    request = work.request
    names = request.outputs or default_outputs(loaded.model)
    check_outputs(loaded.model, names)
    if request.outputs is None and names != DEFAULT:
        work.note(f"{loaded.name} has no classifier: what is built gives {listing(names)} (--outputs)")
    request.require_logits(names)
    return names


def load_request(work: Work) -> tuple[LoadedModel, Choice, list[str] | None]:
    """Return the model, its preprocessing and who says it, and its classes; opens the labelled images."""
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
        kept=request.kept,
        method=request.method,
        checkpoint_key=request.checkpoint_key,
        headless=request.needs_no_head,
    )
    work.note(*loaded.notes)
    work.outputs = _output_names(work, loaded)
    classes = class_names(request, loaded.model.num_classes)
    if request.val_data:
        work.samples = open_labelled(
            request.val_data, classes, loaded.model.num_classes, **request.val_options
        )
        work.note(*(f"--val-data: {note}" for note in work.samples.notes))
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
    work.note(*choice.notes)
    named = [name for name in ("mean", "std") if choice.deciding[name].source is Source.MODEL_NAME]
    if loaded.checkpoint and named:
        work.note(
            f"{loaded.checkpoint.path.name} does not say what its images were like, so {' and '.join(named)} are from "
            f"{from_name(config).words}; if it was trained otherwise, pass {' and '.join(f'--{name}' for name in named)}"
        )
    return choice


def _images(work: Work, preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    """Return the images that the comparisons run on, as the preprocessing gives them, and where they are from.

    Notes pictures that the preprocessing leaves lying, among these, those to calibrate on and the labelled ones.
    """
    from sit_deploy.data.batches import batches
    from sit_deploy.data.ignored_orientation import ignored_orientation_note
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
        sources: list[Any] = work.damaged.whole(found.images, count, preprocessing)
        origin = f"{len(sources)} of {len(found.images)} images in {shown(where)}"
        work.note(*([f"--calib-data: {found.note}"] if found.note else []))
        many = request.calib_images or CALIBRATION_IMAGES
        used += spread(found.images, many) if request.precision in EIGHT_BITS else sources
    else:
        sources = synthetic_images(count)
        origin = f"{count} synthetic images (pass --calib-data for your own)"
    used = list(dict.fromkeys(used))
    for pictures in (used, [] if getattr(labelled, "files", None) else labelled):
        note = ignored_orientation_note(pictures, preprocessing, "build it with")
        work.note(*([note] if note else []))
    ((images, _),) = batches(sources, preprocessing, len(sources))
    # of images that ranges are taken from, the calibration says it
    if request.precision not in EIGHT_BITS and (said := _sameness(images)):
        work.warn(
            f"{origin}: {said}, and what agrees on them may not on others; pass --calib-data with images like those to come"
        )
    return images, origin


def _sameness(images: np.ndarray) -> str | None:
    """Say of prepared images (n, ...) that there is nothing to tell them apart by, None where there is."""
    import numpy as np

    if len(images) > 1 and (images == images[:1]).all():
        return "they are all one picture"
    # the places of pixels are all axes but that of the channels, which is the one of three
    rows = images.reshape(len(images), 3, -1) if images.shape[1] == 3 else images.reshape(len(images), -1, 3)
    places = 2 if images.shape[1] == 3 else 1
    return "each is of one colour all over" if not np.ptp(rows, axis=places).any() else None


def _deploy(work: Work, loaded: LoadedModel, compared: ComparedImages) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the deploy form, compared with the model, and its outputs."""
    from sit_deploy.graph.deploy_form import to_deploy_form

    names = tuple(compared.reference)
    deploy = to_deploy_form(loaded.model, names, keep_value_bias=bool(work.request.trained_thresholds))
    values = torch_outputs(deploy, compared.normalised, names)
    hop = compare("deploy form", values, compared.reference, compared.reference, TOLERANCE["fp32"])
    work.hops.append(hop)
    require(work.hops)
    return deploy, values


def _export(request: BuildRequest, loaded: LoadedModel, deploy: Any) -> onnx.ModelProto:
    from sit_deploy.graph.export import BATCH, export_onnx

    batch = BATCH if request.dynamic_batch else request.batch_size
    return export_onnx(
        deploy,
        loaded.model.img_size,
        batch=batch,
        opset=request.opset,
        name=loaded.name,
        # 8 bits are written around products: attention that has none is one operator after that (`lower`)
        one_attention=request.precision not in EIGHT_BITS,
    )


def _check_graph(
    work: Work,
    graph: onnx.ModelProto,
    folder: Path,
    compared: ComparedImages,
    previous: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Lint the exported graph and compare it; at the smallest and the largest batch where the batch is open."""
    from sit_deploy.graph import lint

    lint.check(graph, max_opset=work.request.opset, dynamic_batch=bool(work.request.dynamic_batch))
    write_graph(graph, folder / MODEL)
    smallest, largest = work.request.batch_range
    reference = compared.reference
    values = graph_outputs(folder / MODEL, compared.normalised, (smallest, largest))
    work.hops.append(compare("ONNX fp32", values, previous, reference, TOLERANCE["fp32"], precision="fp32"))
    if smallest != largest:
        single = graph_outputs(folder / MODEL, compared.normalised, (smallest, smallest))
        hop = compare(f"ONNX fp32, batch {smallest}", single, values, reference, TOLERANCE["fp32"])
        work.hops.append(hop)
    require(work.hops)
    return values
