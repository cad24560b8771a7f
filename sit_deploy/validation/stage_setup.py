"""The stages of a bundle made ready to be measured: the logits of each, and how it is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.timing import TimingOptions, WorkerSpec, engine_worker
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.inference import Classifier, graph_on_onnxruntime, is_low_precision, load
from sit_deploy.measure.evaluate import Logits
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.report.types import Stage
from sit_deploy.validation.reference import (
    TeacherSource,
    export_again,
    reference_logits,
    reference_model,
    teacher_model,
)
from sit_deploy.validation.torch_worker import DeployCall, TeacherCall, TorchCall

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class StageSetup:
    """A stage to measure.

    Attributes:
        name: as a report has it.
        runtime: what it runs on.
        size: bytes of its weights.
        macs: multiply-accumulates of an image.
        run: from images as the bundle's preprocessing gives them to logits, or to vectors of a bundle without them; None where it does
            not run here.
        worker: how to time it, None where `note` says why not.
        is_reference: whether it is the student in PyTorch, which the others are compared with.
    """

    name: str
    runtime: str
    size: int
    macs: int
    run: Logits | None
    worker: WorkerSpec | None = None
    note: str = ""
    is_reference: bool = False


@dataclass(frozen=True)
class BundleStages:
    """All stages of a bundle, in order.

    Attributes:
        student: what `StageSetup.run` gives, of normalised images, by the student in PyTorch.
        stages: from the teacher to the engine.
        float_graph: the FP32 graph, exported again.
    """

    student: Logits
    stages: list[StageSetup]
    float_graph: onnx.ModelProto


@dataclass(frozen=True)
class StageBuilder:
    """What the stages are made from.

    Attributes:
        bundle: whose stages they are.
        folder: for graphs that the bundle does not hold.
        checkpoint: the student's weights, where they moved since the build.
        timing: what every stage runs on.
        torch_on: PyTorch's device and type.
        opened: closes what the stages hold open.
    """

    bundle: Bundle
    folder: Path
    checkpoint: Path | None
    timing: TimingOptions
    torch_on: tuple[str, str]
    opened: contextlib.ExitStack

    def build(self, teacher: TeacherSource | None) -> BundleStages:
        """Return every stage; of a teacher's bundle its engine is one too. Its path is absolute (`TeacherSource.fetched`)."""
        from sit_deploy.graph.deploy_form import to_deploy_form
        from sit_deploy.models.outputs import with_outputs

        bundle, weights = self.bundle, self.checkpoint and self.checkpoint.absolute()
        stages = []
        if teacher is not None:
            model = teacher_model(bundle, teacher)
            stages.append(self._torch_stage(Stage.TEACHER, model, TeacherCall, teacher))
            if teacher.is_bundle:
                other = replace(self, bundle=load_bundle(teacher.source))
                stages.append(other._engine_stage(Stage.TEACHER_ENGINE.value))
        names = [one.name for one in bundle.outputs]
        model = reference_model(bundle, weights)
        deploy = to_deploy_form(model, names)
        graph = export_again(bundle, deploy)
        student = self._torch_stage(Stage.STUDENT, with_outputs(model, names), TorchCall, weights)
        stages.append(replace(student, is_reference=True))
        stages.append(self._torch_stage(Stage.DEPLOY_FORM, deploy, DeployCall, weights))
        stages += [self._graph_stage(precision, path) for precision, path in self._graphs(graph)]
        stages.append(self._engine_stage(Stage.of_engine(bundle.manifest.engine.kind)))
        return BundleStages(reference_logits(with_outputs(model, names), self.torch_on[0]), stages, graph)

    def _of_runtime(self, classifier: Classifier) -> Logits:
        """Return the first output of images as an open graph or engine takes them, by which stages are compared: logits, or vectors."""
        name = self.bundle.outputs[0].name
        return lambda images: classifier.outputs(images)[name]

    def _normalised(self, logits: Logits) -> Logits:
        """Return the logits of images as the bundle's engine takes them, of a function of normalised ones."""
        preprocessing = self.bundle.preprocessing()
        if not preprocessing.takes_pixels:
            return logits
        return lambda images: logits(preprocessing.normalise(images))

    def _torch_stage(self, stage: Stage, model: Any, call: type[TorchCall], weights: Any) -> StageSetup:
        """Return the stage of a model in PyTorch, timed by `call` with its weights."""
        device, dtype = self.torch_on
        bundle, batch = self.bundle, self.bundle.batch_size
        job = (bundle.path.absolute(), weights, batch, self.timing.threads, device, dtype)
        return StageSetup(
            stage.value,
            "PyTorch" if device == "cpu" else f"PyTorch, {dtype} on the GPU",
            sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
            _count_macs_of_model(model, bundle.manifest.model.image_size),
            self._normalised(reference_logits(model, device)),
            WorkerSpec(call, job, batch),
        )

    def _graphs(self, float_graph: onnx.ModelProto) -> Iterator[tuple[str, Path]]:
        """Give the graphs between the deploy form and the engine by precision: FP32, the rest of 8 bits, the bundle's."""
        from sit_deploy.graph.float16_ranges import observe_float16_ranges
        from sit_deploy.graph.precision import to_precision
        from sit_deploy.graph.write import write_graph

        bundle, folder = self.bundle, self.folder
        precision = bundle.manifest.precision
        write_graph(float_graph, folder / "fp32.onnx")
        yield "fp32", folder / "fp32.onnx"
        if precision in EIGHT_BITS and is_low_precision(bundle.model_path):
            images = bundle.golden()[0]
            if bundle.preprocessing().takes_pixels:
                images = bundle.preprocessing().normalise(images)
            ranges = observe_float16_ranges(float_graph, images, bundle.batch_range[1])
            write_graph(to_precision(float_graph, "fp16", ranges)[0], folder / "fp16.onnx")
            yield "fp16", folder / "fp16.onnx"
        if precision != "fp32":
            yield precision, bundle.model_path

    def _graph_stage(self, precision: str, path: Path) -> StageSetup:
        """Return the stage of a graph on ONNX Runtime's CPU; one of 16 bits is simulated there, so its time means nothing."""
        import onnx

        from sit_deploy.graph.inspect import count_macs

        bundle, threads = self.bundle, self.timing.threads
        batch = bundle.batch_size
        worker, note = None, "rounding simulated on the CPU: not timed"
        if is_low_precision(path):
            with graph_on_onnxruntime(path, threads=threads) as runner:
                classifier = self.opened.enter_context(Classifier(runner, bundle.batch_range))
        else:
            engine, runtime = self.folder / f"{path.stem}.engine.onnx", engines.get("onnxruntime")
            runtime.build(path, engine, engines.BuildOptions(threads=threads))
            runner = runtime.load(engine, threads=threads)
            classifier = self.opened.enter_context(Classifier(runner, bundle.batch_range))
            worker, note = engine_worker("onnxruntime", engine, batch, replace(self.timing, device=None)), ""
        run = self._of_runtime(classifier)
        run = run if path == bundle.model_path else self._normalised(run)
        macs = count_macs(onnx.load(path)) // (1 if bundle.manifest.batch.is_dynamic else batch)
        name, size = Stage.of_graph(precision), path.stat().st_size
        return StageSetup(name, "ONNX Runtime", size, macs, run, worker, note)

    def _engine_stage(self, name: str) -> StageSetup:
        bundle, timing = self.bundle, self.timing
        kind = bundle.manifest.engine.kind
        size, macs = bundle.manifest.engine_bytes, bundle.manifest.model.macs
        engine = engines.get(kind)
        if not engine.probe().can_run:
            return StageSetup(name, engine.title, size, macs, None, note="needs a GPU: not run here")
        classifier = self.opened.enter_context(load(bundle, threads=timing.threads, device=timing.device))
        worker = engine_worker(kind, bundle.engine_path, bundle.batch_size, timing, bundle.origin)
        return StageSetup(name, engine.title, size, macs, self._of_runtime(classifier), worker)


def _count_macs_of_model(model: Any, image_size: Sequence[int]) -> int:
    """Return the multiply-accumulates of one image, of products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *image_size))
    return counter.get_total_flops() // 2
