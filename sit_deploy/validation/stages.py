"""The ledger of a bundle: teacher → student → deploy form → ONNX → precision → engine, and what each hop costs and gives.

All hops see the same images in one pass, and take turns at being timed, so that a loss is blamed on the right one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.timing import TimingOptions, WorkerResult, WorkerSpec, alternate, engine_worker
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.inference import Classifier, graph_on_onnxruntime, is_low_precision, load
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.evaluate import Evaluation, Logits, evaluate
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.validation.bench import TorchCall, torch_device
from sit_deploy.validation.reference import export_again, reference_logits, reference_model, teacher_model

if TYPE_CHECKING:
    import onnx

    from sit_deploy.data.samples import Samples

Progress = Callable[[str, int, int], None]

TEACHER, TEACHER_ENGINE, STUDENT, DEPLOY = "teacher", "teacher engine", "student", "deploy form"
SYNTHETIC = 32  # images where no others are given: they say how near the logits are, and nothing of accuracy


@dataclass(frozen=True)
class Entry:
    """A hop. Accuracy is in percent, None without labelled images; agreement and SQNR are with the student in PyTorch.

    Attributes:
        size: bytes of the file that has the weights.
        macs: of one image.
        latency_ms: median of a batch over the rounds; None where it was not timed, which `note` explains.
    """

    name: str
    runtime: str
    size: int
    macs: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    note: str = ""


@dataclass
class Ledger:
    """What was measured of one bundle. `to_dict` has `given` too: how many classes the student gives.

    Attributes:
        engine: name of the entry that stands for what is shipped; not the engine itself where that cannot run here.
        accuracy: of that entry, None without labelled images.
        evaluation, timing: what the entries were made from.
        float_graph: the FP32 graph, exported again.
    """

    entries: list[Entry]
    engine: str
    images: int
    batch_size: int
    accuracy: Accuracy | None
    evaluation: Evaluation
    float_graph: onnx.ModelProto
    timing: dict[str, WorkerResult] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "engine": self.engine,
            "images": self.images,
            "batch_size": self.batch_size,
            "given": len({best for _, best in self.evaluation.guesses}),
        }


@dataclass(frozen=True)
class _Hop:
    """A hop to measure.

    Attributes:
        logits: of images as the bundle's preprocessing gives them, None where it does not run here.
        worker: how to time it, None where `note` says why not.
    """

    name: str
    runtime: str
    size: int
    macs: int
    logits: Logits | None
    worker: WorkerSpec | None = None
    note: str = ""


class DeployCall(TorchCall):
    """A worker's callable of the deploy form in PyTorch."""

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Path | None) -> Any:
        from sit_deploy.graph.deploy_form import to_deploy_form

        return to_deploy_form(reference_model(bundle, checkpoint))


class TeacherCall(TorchCall):
    """A worker's callable of the teacher in PyTorch; its checkpoint is a (path, model name) pair."""

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Any) -> Any:
        return teacher_model(bundle, *checkpoint)


def measure_ledger(
    bundle: Bundle,
    samples: Samples | None = None,
    *,
    teacher: Path | None = None,
    teacher_name: str | None = None,
    checkpoint: Path | None = None,
    timing: TimingOptions | None = None,
    progress: Progress | None = None,
) -> Ledger:
    """Measure every hop of a bundle.

    Args:
        bundle: whose hops they are.
        samples: labelled images; without them the hops are compared on synthetic ones, and have no accuracy.
        teacher: see `reference.teacher_model`; of a bundle its engine is a hop too.
        teacher_name: likewise.
        checkpoint: see `reference.reference_weights`.
        timing: turns of each hop at being timed, and what it runs on; with no round, nothing is timed.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        InputError: weights that are not there, a teacher that does not fit, or an image that cannot be read.
        GateError: a hop gives NaN or infinity.
    """
    from sit_deploy.data.synthetic import synthetic_images

    timing = timing or TimingOptions()
    if teacher is not None and teacher.is_dir():
        _require_same_input(bundle, load_bundle(teacher))
    report = progress or (lambda *_: None)
    labelled = samples is not None
    given = samples if labelled else [(image, 0) for image in synthetic_images(SYNTHETIC)]
    torch_on = torch_device(bundle.manifest.engine.kind, timing.device, bundle.manifest.precision)
    if torch_on[0] != "cpu":
        import torch

        if not torch.cuda.is_available():
            torch_on = ("cpu", "float32")
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as temporary:
        making = _Making(bundle, Path(temporary), checkpoint, timing, torch_on)
        with contextlib.ExitStack() as stack:
            report("Preparing every hop", 0, 0)
            student, hops, graph = _hops(making, stack, teacher, teacher_name)
            report("Preparing every hop", 1, 1)
            found = evaluate(
                student,
                {hop.name: hop.logits for hop in hops if hop.logits and hop.name != STUDENT},
                given,
                bundle.preprocessing(),
                max(8, bundle.batch_size),
                lambda _, done, total: report("Measuring every hop", done, total),
            )
        # out here their sessions are closed: idle threads would slow what is timed
        workers = {hop.name: hop.worker for hop in hops if hop.worker}
        timed = alternate(workers, timing, _renamed(report)) if timing.rounds else {}
    return _ledger(hops, found, timed, bundle, labelled, graph)


def _require_same_input(bundle: Bundle, teacher: Bundle) -> None:
    """Refuse a teacher's bundle whose engine could not see the same batches of the same images."""
    for what, ours, theirs in (
        ("engine", bundle.manifest.engine.kind, teacher.manifest.engine.kind),
        ("batch", bundle.manifest.batch, teacher.manifest.batch),
        ("preprocessing", bundle.preprocessing(), teacher.preprocessing()),
    ):
        if ours != theirs:
            raise InputError(
                f"the teacher {teacher.path} has another {what} than {bundle.path}; build it with the same, or give its checkpoint"
            )


def _renamed(report: Progress) -> Progress:
    return lambda _, done, total: report("Timing every hop", done, total)


def _ledger(
    hops: list[_Hop],
    found: Evaluation,
    timing: dict[str, WorkerResult],
    bundle: Bundle,
    labelled: bool,
    float_graph: onnx.ModelProto,
) -> Ledger:
    entries = []
    for hop in hops:
        entry = Entry(hop.name, hop.runtime, hop.size, hop.macs, note=hop.note)
        if hop.logits:
            # the student is what every tally has as its reference
            tally = found.tallies.get(hop.name)
            accuracy = Accuracy.of(tally or next(iter(found.tallies.values())))
            top1, top5 = accuracy.engine_top1, accuracy.engine_top5
            if tally is None:
                top1, top5 = accuracy.reference_top1, accuracy.reference_top5
            entry = replace(
                entry,
                top1=top1 if labelled else None,
                top5=top5 if labelled else None,
                agreement=accuracy.agreement if tally else 100.0,
                sqnr_db=accuracy.sqnr_db if tally else None,
            )
        if hop.name in timing:
            entry = replace(entry, latency_ms=timing[hop.name].stats.p50_ms)
        entries.append(entry)
    shipped = [hop.name for hop in hops if hop.logits][-1]
    accuracy = Accuracy.of(found.tallies[shipped]) if labelled else None
    return Ledger(entries, shipped, found.done, bundle.batch_size, accuracy, found, float_graph, timing)


@dataclass(frozen=True)
class _Making:
    """What the hops are made from.

    Attributes:
        folder: for graphs that the bundle does not hold.
        torch_on: PyTorch's device and type.
    """

    bundle: Bundle
    folder: Path
    checkpoint: Path | None
    timing: TimingOptions
    torch_on: tuple[str, str]

    def normalised(self, logits: Logits) -> Logits:
        """Return the logits of images as the bundle's engine takes them, of a function of normalised ones."""
        preprocessing = self.bundle.preprocessing()
        if not preprocessing.takes_pixels:
            return logits
        return lambda images: logits(preprocessing.normalise(images))

    def torch_hop(self, name: str, model: Any, call: type[TorchCall], weights: Any) -> _Hop:
        """Return the hop of a model in PyTorch, timed by `call` with its weights."""
        device, dtype = self.torch_on
        batch = self.bundle.batch_size
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        macs = count_macs_of(model, self.bundle.manifest.model.image_size)
        return _Hop(
            name,
            "PyTorch" if device == "cpu" else f"PyTorch, {dtype} on the GPU",
            size,
            macs,
            self.normalised(reference_logits(model, device)),
            WorkerSpec(
                call, (self.bundle.path.absolute(), weights, batch, self.timing.threads, device, dtype), batch
            ),
        )


def count_macs_of(model: Any, image_size: Sequence[int]) -> int:
    """Return the multiply-accumulates of one image, of products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *image_size))
    return counter.get_total_flops() // 2


def _hops(
    making: _Making, stack: contextlib.ExitStack, teacher: Path | None, teacher_name: str | None
) -> tuple[Logits, list[_Hop], onnx.ModelProto]:
    """Return the student's logits of normalised images, every hop in order, and the FP32 graph."""
    from sit_deploy.graph.deploy_form import to_deploy_form

    bundle, weights = making.bundle, making.checkpoint and making.checkpoint.absolute()
    hops = []
    if teacher is not None:
        model = teacher_model(bundle, teacher, teacher_name)
        hops.append(making.torch_hop(TEACHER, model, TeacherCall, (teacher.absolute(), teacher_name)))
        if teacher.is_dir():
            hops.append(_engine_hop(replace(making, bundle=load_bundle(teacher)), stack, TEACHER_ENGINE))
    model = reference_model(bundle, weights)
    deploy = to_deploy_form(model)
    graph = export_again(bundle, deploy)
    hops.append(making.torch_hop(STUDENT, model, TorchCall, weights))
    hops.append(making.torch_hop(DEPLOY, deploy, DeployCall, weights))
    for name, path in _graphs(making, graph):
        hops.append(_graph_hop(making, stack, name, path))
    kind = bundle.manifest.engine.kind
    hops.append(_engine_hop(making, stack, f"{kind} engine"))
    return reference_logits(model, making.torch_on[0]), hops, graph


def _graphs(making: _Making, float_graph: onnx.ModelProto) -> Iterator[tuple[str, Path]]:
    """Give the graphs between the deploy form and the engine, by name: FP32, what 8 bits leave the rest in, the bundle's."""
    from sit_deploy.graph.float16_ranges import observe_float16_ranges
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.write import write_graph

    bundle, folder = making.bundle, making.folder
    precision = bundle.manifest.precision
    write_graph(float_graph, folder / "fp32.onnx")
    yield "ONNX fp32", folder / "fp32.onnx"
    if precision in EIGHT_BITS and is_low_precision(bundle.model_path):
        images = bundle.golden()[0]
        if bundle.preprocessing().takes_pixels:
            images = bundle.preprocessing().normalise(images)
        ranges = observe_float16_ranges(float_graph, images, bundle.batch_range[1])
        write_graph(to_precision(float_graph, "fp16", ranges)[0], folder / "fp16.onnx")
        yield "ONNX fp16", folder / "fp16.onnx"
    if precision != "fp32":
        yield f"ONNX {precision}", bundle.model_path


def _graph_hop(making: _Making, stack: contextlib.ExitStack, name: str, path: Path) -> _Hop:
    """Return the hop of a graph on ONNX Runtime's CPU; one of 16 bits is simulated there, so its time means nothing."""
    import onnx

    from sit_deploy.graph.inspect import count_macs

    bundle, threads = making.bundle, making.timing.threads
    batch = bundle.batch_size
    worker, note = None, "rounding simulated on the CPU: not timed"
    if is_low_precision(path):
        with graph_on_onnxruntime(path, threads=threads) as runner:
            classifier = stack.enter_context(Classifier(runner, bundle.batch_range))
    else:
        engine, runtime = making.folder / f"{path.stem}.engine.onnx", engines.get("onnxruntime")
        runtime.build(path, engine, engines.BuildOptions(threads=threads))
        runner = runtime.load(engine, threads=threads)
        classifier = stack.enter_context(Classifier(runner, bundle.batch_range))
        worker, note = engine_worker("onnxruntime", engine, batch, replace(making.timing, device=None)), ""
    logits = classifier.logits if path == bundle.model_path else making.normalised(classifier.logits)
    macs = count_macs(onnx.load(path)) // (1 if bundle.manifest.batch.is_dynamic else batch)
    return _Hop(name, "ONNX Runtime", path.stat().st_size, macs, logits, worker, note)


def _engine_hop(making: _Making, stack: contextlib.ExitStack, name: str) -> _Hop:
    bundle, timing = making.bundle, making.timing
    kind = bundle.manifest.engine.kind
    size, macs = bundle.manifest.engine_bytes, bundle.manifest.model.macs
    engine = engines.get(kind)
    if not engine.probe().can_run:
        return _Hop(name, engine.title, size, macs, None, note="needs a GPU: not run here")
    classifier = stack.enter_context(load(bundle, threads=timing.threads, device=timing.device))
    worker = engine_worker(kind, bundle.engine_path, bundle.batch_size, timing, bundle.origin)
    return _Hop(name, engine.title, size, macs, classifier.logits, worker)
