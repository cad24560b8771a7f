"""`sit-deploy build`: checkpoint → deploy form → ONNX → precision → engine → bundle, every hop compared.

Nothing is written to the output folder until every hop is within tolerance.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.bundle import GOLDEN, MODEL, Bundle, check_destination, load_bundle, staging, write_manifest
from sit_deploy.errors import GateError, InputError
from sit_deploy.models.configs import get_config
from sit_deploy.parity import TOLERANCE, Hop, compare, require

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from sit_deploy.data import Preprocessing
    from sit_deploy.models.checkpoint import LoadedModel

Progress = Callable[[str, int, int], None]

PRECISIONS = ("fp32", "fp16", "bf16")
GOLDEN_IMAGES = 4
_REFERENCE_BATCH = 8


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the fields are the options of `sit-deploy build`.

    dynamic_batch: (min, opt, max), in place of `batch_size`. calib_data: folder of images for the comparisons and the
    ranges of FP16; synthetic ones without it. val_data: ImageFolder for accuracy. targets: compute capabilities.
    """

    model: str
    output: Path
    precision: str = "fp32"
    checkpoint: Path | None = None
    ema: bool = True
    engine: str = "auto"
    batch_size: int = 1
    dynamic_batch: tuple[int, int, int] | None = None
    image_size: int | None = None
    num_classes: int | None = None
    labels: Path | None = None
    calib_data: Path | None = None
    calib_images: int = 8
    val_data: Path | None = None
    max_accuracy_drop: float | None = None
    opset: int = 20
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    optimization_level: int | None = None
    threads: int | None = None
    force: bool = False

    def command(self, engine: str) -> str:
        """Return the command that builds the same again, its paths absolute and the output folder left to the caller."""
        options: dict[str, Any] = {
            "--model": get_config(self.model).name,
            "--precision": self.precision,
            "--checkpoint": self.checkpoint and self.checkpoint.absolute(),
            "--engine": engine,
            "--image-size": self.image_size,
            "--num-classes": self.num_classes,
            "--labels": self.labels and self.labels.absolute(),
            "--calib-data": self.calib_data and self.calib_data.absolute(),
            "--calib-images": self.calib_images,
            "--val-data": self.val_data and self.val_data.absolute(),
            "--max-accuracy-drop": self.max_accuracy_drop,
            "--opset": self.opset,
            "--optimization-level": self.optimization_level,
        }
        if self.dynamic_batch:
            options["--dynamic-batch"] = ":".join(map(str, self.dynamic_batch))
        else:
            options["--batch-size"] = self.batch_size
        words = [str(w) for pair in options.items() if pair[1] is not None for w in pair]
        words += [w for target in self.targets for w in ("--target", target)]
        return shlex.join(["sit-deploy", "build", *words, *([] if self.ema else ["--no-ema"])])


@dataclass
class _Work:
    """What the steps hand to one another."""

    request: BuildRequest
    engine: engines.Engine
    why: str
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    samples: list[tuple[Path, int]] = field(default_factory=list)  # labelled images, of --val-data

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Progress]:
        """Show a step, time it, and give it a progress callback of its own."""
        started = time.perf_counter()
        self.progress(text, 0, 0)
        # one more than the inner total: the step ends with its block, not with the inner work
        yield lambda _, done, total: self.progress(text, done, total + 1)
        self.progress(text, 1, 1)
        self.seconds[text] = round(time.perf_counter() - started, 2)


def build(request: BuildRequest, progress: Progress | None = None) -> Bundle:
    """Build a bundle, checked hop by hop, and move it into place whole.

    Raises:
        InputError: bad input: see each option's own checks; nothing is written.
        GateError: a hop or the accuracy is out of tolerance; nothing is written.
        engines.EngineError: the engine is missing, or cannot be built.
    """
    _check_options(request)
    check_destination(request.output, request.force)
    engine, why = engines.select(request.engine)
    _check_engine(request, engine)
    work = _Work(request, engine, why, progress or (lambda *_: None))
    with staging(request.output, request.force) as folder:
        _make_bundle(work, folder)
    return load_bundle(request.output)


def export(request: BuildRequest, progress: Progress | None = None) -> list[Hop]:
    """Write the ONNX graph alone to the file `request.output`; return the hops, which are all within tolerance.

    Raises:
        InputError, GateError: as `build`; the file appears whole or not at all.
    """
    _check_options(request)
    path = request.output.absolute()
    if path.is_dir() or path.suffix != ".onnx":
        raise InputError(
            f"output {request.output} must be a file that ends in .onnx; pass -o {request.output.stem}.onnx"
        )
    if path.exists() and not request.force:
        raise InputError(f"output {request.output} exists; pass --force to replace it, or choose another -o")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"folder {path.parent} does not exist or cannot be written; choose another with -o")
    work = _Work(request, engines.get("onnxruntime"), "", progress or (lambda *_: None))
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        _make_graph(work, Path(folder))
        (Path(folder) / MODEL).replace(path)
    return work.hops


def _check_options(request: BuildRequest) -> None:
    """Refuse what can be refused before anything heavy is imported."""
    config = get_config(request.model)
    if request.precision not in PRECISIONS:
        raise InputError(
            f"precision '{request.precision}' is not offered; choose from {', '.join(PRECISIONS)}"
        )
    if request.batch_size < 1:
        raise InputError(
            f"batch size must be at least 1, got {request.batch_size}; pass --batch-size 1 or more"
        )
    if request.calib_images < 1:
        raise InputError(
            f"number of images must be at least 1, got {request.calib_images}; pass --calib-images 1 or more"
        )
    size = request.image_size or config.image_size
    if size < 16 or size % 16:
        raise InputError(
            f"image size {size} is not divisible by 16; take {max(16, size // 16 * 16)} or {max(0, size // 16) * 16 + 16}"
        )
    if request.max_accuracy_drop is not None and request.val_data is None:
        raise InputError("--max-accuracy-drop needs images with labels; pass --val-data DIR")
    engines.BuildOptions(  # raises for values that no engine takes
        dynamic_batch=request.dynamic_batch,
        optimization_level=request.optimization_level,
        threads=request.threads,
    )
    check_destination(request.output, request.force)


def _check_engine(request: BuildRequest, engine: engines.Engine) -> None:
    if engine.kind != "onnxruntime":
        return
    if request.precision == "bf16":
        raise InputError(
            "ONNX Runtime has no bf16 kernels for a CPU; pass --engine tensorrt-rtx, or --precision fp32 or fp16"
        )
    if request.targets or request.timing_cache or request.optimization_level is not None:
        raise InputError(
            "--target, --timing-cache and --optimization-level are for TensorRT engines; leave them out for onnxruntime"
        )


@dataclass(frozen=True)
class _Graph:
    """What export gives: the model, the images it was compared on, its reference logits, and the graph with its own."""

    loaded: LoadedModel
    preprocessing: Preprocessing
    classes: list[str] | None
    images: np.ndarray
    image_source: str
    reference: np.ndarray
    graph: onnx.ModelProto
    plan: Any
    logits: np.ndarray


def _make_graph(work: _Work, folder: Path) -> _Graph:
    """Write model.onnx into `folder`, every hop up to it compared."""
    import numpy as np

    request = work.request
    with work.step(f"Loading {request.model}"):
        loaded, preprocessing, classes = _load(work)
    with work.step("Preparing images"):
        images, image_source = _images(request, preprocessing)
    with work.step("PyTorch reference"):
        reference = torch_logits(loaded.model, images)
        if not np.isfinite(reference).all():
            raise InputError(
                "the PyTorch model itself gives NaN or infinite logits on these images; check its weights"
            )
    with work.step("Deploy form"):
        deploy, logits = _deploy(work, loaded, images, reference)
    with work.step("Exporting to ONNX"):
        graph = _export(request, loaded, deploy)
        del deploy
        exported = _check_graph(work, graph, folder, images, logits, reference)
    graph, plan, logits = _lower(work, graph, folder, images, exported, reference)
    return _Graph(loaded, preprocessing, classes, images, image_source, reference, graph, plan, logits)


def _make_bundle(work: _Work, folder: Path) -> None:
    import numpy as np

    from sit_deploy.graph.inspect import summarize
    from sit_deploy.report import write_report

    made = _make_graph(work, folder)
    with work.step(f"Building the {work.engine.kind} engine") as report:
        engine_path = folder / work.engine.filename
        info = work.engine.build(folder / MODEL, engine_path, _engine_options(work.request), report)
    _engine_hop(work, engine_path, made)
    accuracy = _accuracy(work, folder, made) if work.samples else None

    np.savez(folder / GOLDEN, images=made.images[:GOLDEN_IMAGES], logits=made.reference[:GOLDEN_IMAGES])
    manifest = _manifest(work, made, info)
    report = {
        **manifest,
        "notes": work.notes,
        "hops": [hop.to_dict() for hop in work.hops],
        "plan": {
            "counts": made.plan.counts,
            "held_back": [asdict(node) for node in made.plan.held_back],
            "casts": made.plan.casts,
        },
        "graph": summarize(made.graph).to_dict(),
        "accuracy": accuracy,
        "seconds": work.seconds,
    }
    write_report(folder, report)
    write_manifest(folder, manifest)


def _load(work: _Work) -> tuple[LoadedModel, Preprocessing, list[str] | None]:
    from sit_deploy.accuracy import match_labels
    from sit_deploy.data import ImageFolder, Preprocessing, load_labels
    from sit_deploy.models.checkpoint import load_model
    from sit_deploy.models.registry import CROP_PCT

    request = work.request
    loaded = load_model(
        request.model, request.checkpoint, request.image_size, request.num_classes, request.ema
    )
    work.notes += loaded.notes
    classes = load_labels(request.labels, loaded.model.num_classes) if request.labels else None
    if request.val_data:
        work.samples = match_labels(ImageFolder(request.val_data), classes, loaded.model.num_classes)
    return loaded, Preprocessing.for_model(loaded.model.img_size[0], CROP_PCT), classes


def _images(request: BuildRequest, preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    """Return the images that the comparisons run on, float32 (n, 3, H, W), and where they are from."""
    from sit_deploy.data import batches, list_images
    from sit_deploy.sample_images import sample_images

    count = request.calib_images
    if request.calib_data:
        found = list_images(request.calib_data)
        # spread over the folder, so that a sorted data set does not give one class only
        sources: list[Any] = [
            found[i * len(found) // min(count, len(found))] for i in range(min(count, len(found)))
        ]
        origin = f"{len(sources)} of {len(found)} images in {request.calib_data}"
    else:
        sources = sample_images(count)
        origin = f"{count} synthetic images (pass --calib-data for your own)"
    ((images, _),) = batches(sources, preprocessing, len(sources))
    return images, origin


def torch_logits(model: Any, images: np.ndarray) -> np.ndarray:
    import numpy as np
    import torch

    with torch.inference_mode():
        parts = torch.from_numpy(images).split(_REFERENCE_BATCH)
        return np.concatenate([model(part).numpy() for part in parts])


def _deploy(
    work: _Work, loaded: LoadedModel, images: np.ndarray, reference: np.ndarray
) -> tuple[Any, np.ndarray]:
    from sit_deploy.deploy import to_deploy_form

    deploy = to_deploy_form(loaded.model)
    logits = torch_logits(deploy, images)
    work.hops.append(compare("deploy form", logits, reference, reference, TOLERANCE["fp32"]))
    require(work.hops)
    return deploy, logits


def _export(request: BuildRequest, loaded: LoadedModel, deploy: Any) -> onnx.ModelProto:
    from sit_deploy.export import BATCH, export_onnx

    batch = BATCH if request.dynamic_batch else request.batch_size
    return export_onnx(deploy, loaded.model.img_size, batch=batch, opset=request.opset, name=loaded.name)


def _check_graph(
    work: _Work,
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
    smallest, largest = _batch_range(work.request)
    logits = _graph_logits(folder / MODEL, images, (smallest, largest))
    work.hops.append(compare("ONNX fp32", logits, previous, reference, TOLERANCE["fp32"]))
    if smallest != largest:
        single = _graph_logits(folder / MODEL, images, (smallest, smallest))
        work.hops.append(
            compare(f"ONNX fp32, batch {smallest}", single, logits, reference, TOLERANCE["fp32"])
        )
    require(work.hops)
    return logits


def _lower(
    work: _Work,
    graph: onnx.ModelProto,
    folder: Path,
    images: np.ndarray,
    exported: np.ndarray,
    reference: np.ndarray,
) -> tuple[onnx.ModelProto, Any, np.ndarray]:
    """Write the precision into the graph, compare it with its rounding simulated, and save it as model.onnx."""
    import numpy as np

    from sit_deploy.graph import lint
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.simulate import first_non_finite, simulate

    precision = work.request.precision
    if precision == "fp32":
        return *to_precision(graph, "fp32"), exported
    ranges = None
    if precision == "fp16":  # bf16 has the range of float32
        with work.step("Observing ranges") as report:
            ranges = _ranges(graph, images, _batch_range(work.request)[1], report)
    with work.step(f"Writing {precision} into the graph"):
        low, plan = to_precision(graph, precision, ranges)
        del graph
        lint.check(low, max_opset=work.request.opset, dynamic_batch=bool(work.request.dynamic_batch))
        write_graph(simulate(low), folder / "simulated.onnx")
        logits = _graph_logits(folder / "simulated.onnx", images, _batch_range(work.request))
        (folder / "simulated.onnx").unlink()
        if not np.isfinite(logits).all():
            batch = _batch_range(work.request)[1]
            worst = np.resize(
                images, (min(batch, len(images)) if work.request.dynamic_batch else batch, *images.shape[1:])
            )
            raise GateError(f"{first_non_finite(low, worst)}; nothing was written")
        work.hops.append(
            compare(
                f"ONNX {precision}", logits, exported, reference, TOLERANCE[precision], "rounding simulated"
            )
        )
        require(work.hops)
        write_graph(low, folder / MODEL)
    return low, plan, logits


def _ranges(graph: onnx.ModelProto, images: np.ndarray, largest: int, progress: Progress) -> dict[str, Any]:
    from calibration.ranges import observe_ranges

    step = max(1, min(largest, _REFERENCE_BATCH))
    return observe_ranges(
        graph, [images[i : i + step] for i in range(0, len(images), step)], progress=progress
    )


def write_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph, the same bytes for the same graph."""
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _batch_range(request: BuildRequest) -> tuple[int, int]:
    if request.dynamic_batch:
        return request.dynamic_batch[0], request.dynamic_batch[2]
    return request.batch_size, request.batch_size


def _graph_logits(path: Path, images: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    from sit_deploy.inference import Classifier

    with Classifier(engines.get("onnxruntime").load(path), batch) as classifier:
        return classifier.logits(images)


def _engine_options(request: BuildRequest) -> engines.BuildOptions:
    return engines.BuildOptions(
        dynamic_batch=request.dynamic_batch,
        optimization_level=request.optimization_level,
        timing_cache=request.timing_cache,
        compute_capabilities=request.targets,
        threads=request.threads,
    )


def _engine_hop(work: _Work, engine_path: Path, made: _Graph) -> None:
    name = f"{work.engine.kind} engine"
    if not work.engine.probe().can_run:
        work.hops.append(Hop(name, note="built; run it where a GPU is"))
        return
    from sit_deploy.inference import Classifier

    with work.step(f"Running the {name}"):
        runner = work.engine.load(engine_path, threads=work.request.threads)
        with Classifier(runner, _batch_range(work.request)) as classifier:
            logits = classifier.logits(made.images)
        tolerance = TOLERANCE[work.request.precision]
        work.hops.append(compare(name, logits, made.logits, made.reference, tolerance))
        require(work.hops)


def _accuracy(work: _Work, folder: Path, made: _Graph) -> dict[str, Any]:
    """Measure both sides on labelled images; where the engine cannot run here, its graph stands in, and says so."""
    from sit_deploy.accuracy import measure
    from sit_deploy.inference import Classifier, graph_on_onnxruntime

    model = made.loaded.model
    runs_here = work.engine.probe().can_run
    with work.step("Measuring accuracy") as report, contextlib.ExitStack() as stack:
        if runs_here:
            runner = work.engine.load(folder / work.engine.filename, threads=work.request.threads)
        else:
            runner = stack.enter_context(graph_on_onnxruntime(folder / MODEL))
        classifier = stack.enter_context(Classifier(runner, _batch_range(work.request)))
        accuracy = measure(
            lambda images: torch_logits(model, images),
            classifier.logits,
            work.samples,
            made.preprocessing,
            _REFERENCE_BATCH,
            report,
        )
    limit = work.request.max_accuracy_drop
    if limit is not None:
        accuracy.require(limit)
    measured_on = f"{work.engine.kind} engine" if runs_here else f"{MODEL} on ONNX Runtime"
    return {**accuracy.to_dict(), "measured_on": measured_on, "data": str(work.request.val_data)}


def _manifest(work: _Work, made: _Graph, info: engines.EngineInfo) -> dict[str, Any]:
    from sit_deploy.doctor import versions
    from sit_deploy.graph.inspect import count_macs

    request, loaded, model = work.request, made.loaded, made.loaded.model
    config = get_config(loaded.name)
    low, high = _batch_range(request)
    batch = (
        {"size": low}
        if not request.dynamic_batch
        else {"min": low, "opt": request.dynamic_batch[1], "max": high}
    )
    weights: dict[str, Any] = {"source": "random", "seed": 0}
    if loaded.checkpoint:
        checkpoint = loaded.checkpoint
        weights = {
            "source": str(checkpoint.path.absolute()),
            "sha256": checkpoint.sha256,
            "entry": checkpoint.source,
            "ema": request.ema,
        }
    return {
        "model": {
            "name": loaded.name,
            "image_size": list(model.img_size),
            "num_classes": model.num_classes,
            "dist_token": model.has_dist_token,
            "tokens": list(model.kept),
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": count_macs(made.graph) // (1 if request.dynamic_batch else request.batch_size),
            "config": {k: v for k, v in asdict(config).items() if k not in ("name", "aliases", "top1")},
            "published_top1": config.top1,
        },
        "classes": made.classes,
        "preprocessing": made.preprocessing.to_dict(),
        "precision": request.precision,
        "batch": batch,
        "opset": request.opset,
        "engine": {
            "kind": info.kind,
            "why": work.why,
            "version": info.version,
            "file": info.filename,
            "target": info.target,
            "build_seconds": round(info.build_seconds, 2),
            "details": info.details,
        },
        "weights": weights,
        "calibration": None,
        "compared_on": made.image_source,
        "versions": versions(),
        "command": request.command(info.kind),
    }
