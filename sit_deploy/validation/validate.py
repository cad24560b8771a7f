"""`sit-deploy validate`: is this bundle's engine, on this machine, what was built and measured?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import engines
from sit_deploy.bundle import GOLDEN, Bundle
from sit_deploy.data.labelled import Labelled, open_for
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
    note = agreement_note(reference) if bundle.manifest["weights"]["source"] != "random" else ""
    tolerance = TOLERANCE[bundle.manifest["precision"]]
    return compare("golden output", classifier.logits(images), reference, reference, tolerance, note)


@dataclass(frozen=True)
class Checked:
    """What labelled images say of an engine. doubt: why the comparison itself may say little."""

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
    samples = open_for(bundle, data, images, **options)
    shard = world.shard if world else WHOLE
    notebook = None
    if resume is not None:
        kind = type(classifier.runner).__name__
        chosen = {name: str(value) for name, value in options.items()}
        facts = (manifest["digest"], kind, str(data), chosen, len(samples), shard.rank, shard.size)
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
    return Checked(accuracy, find_doubts(accuracy, manifest, found.guesses, samples), samples)


def check_layers(model: Path, classifier: Any, images: Any, runs: int = 10) -> dict[str, Any]:
    """Ask a TensorRT engine for its layers: types and time of each, and whether products run in the types of the graph.

    Args:
        model: the engine's graph. classifier: the open engine. images: float32 (n, 3, H, W), of which the first is run.
    Returns:
        JSON values: `kept`, `raised` and `untold` products by ONNX node, and `layers`, the slowest first.
    """
    import onnx

    from engines.tensorrt import layers as reader

    runner = classifier.runner
    layers = reader.read_layers(runner.inspect_layers())
    asked = reader.asked_types(onnx.load(model, load_external_data=False))
    found = reader.check_precision(layers, asked)
    profiler = reader.make_profiler(runner.trt)
    batch = images[:1].repeat(classifier.batch[0], axis=0)
    runner.profile_layers({runner.inputs[0].name: batch}, profiler, runs)
    milliseconds = {name: total / profiler.runs[name] for name, total in profiler.milliseconds.items()}
    return {
        "kept": list(found.kept),
        "raised": list(found.raised),
        "untold": list(found.untold),
        "layers": reader.table(layers, milliseconds),
    }


def time_layers(bundle: Bundle, threads: int | None = None, runs: int = 20) -> dict[str, Any]:
    """Ask the runtime of a CPU engine for the time of each layer, on the golden images.

    Returns:
        JSON values as `check_layers`, without what only TensorRT tells; `types` has the operator.
    """
    from engines.layer_times import layer_times

    images = bundle.golden()[0]
    batch = images[[i % len(images) for i in range(bundle.batch_size)]]
    kind = bundle.manifest["engine"]["kind"]
    with engines.get(kind).load(bundle.engine_path, threads=threads, origin=bundle.origin) as runner:
        feeds = {runner.inputs[0].name: batch}
    found = layer_times(kind, bundle.engine_path, feeds, runs, threads)
    whole = sum(layer.ms for layer in found)
    rows = [
        {"layer": row.layer, "types": [row.operator], "ms": row.ms, "share": row.ms / whole, "tactic": ""}
        for row in sorted(found, key=lambda row: -row.ms)
    ]
    return {"kept": None, "raised": None, "untold": None, "layers": rows}


def compare_layers(bundle: Bundle, kind: str, checkpoint: Path | None = None) -> Any:
    """Find the first layer that drifts, on the golden images: an `engines.layer_comparison.LayerComparison`.

    A TensorRT engine is compared with its graph on ONNX Runtime, tensor by tensor; on a CPU the bundle's graph with the
    float32 graph, along the residual stream.

    Args:
        kind: the engine to debug, the bundle's own or one for a CPU.
    Raises:
        InputError: the weights of a CPU bundle are not there.
        engines.NoGpuError, engines.EngineNotInstalledError: no GPU, or no Polygraphy.
    """
    import tempfile

    import onnx

    from engines import layer_comparison
    from sit_deploy.graph.simulate import simulate
    from sit_deploy.validation.drift import debug_on_cpu

    if kind in engines.ON_CPU:
        return debug_on_cpu(bundle, checkpoint)
    graph = onnx.load(bundle.model_path)
    feeds = {graph.graph.input[0].name: bundle.golden()[0][:1].repeat(bundle.batch_range[0], axis=0)}
    theirs = layer_comparison.tensorrt_outputs(kind, bundle.model_path, feeds)
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        # a CPU computes 16-bit graphs in float32, so their rounding is written out
        reference = Path(folder) / "reference.onnx"
        onnx.save(simulate(graph), reference)
        ours = layer_comparison.onnxruntime_outputs(reference, feeds)
    return layer_comparison.compare_layers(graph, ours, theirs, TOLERANCE[bundle.manifest["precision"]])
