"""`sit-deploy validate`: is this bundle's engine, on this machine, what was built and measured?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engines
from sit_deploy.accuracy import Accuracy, match_labels, measure
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.parity import TOLERANCE, Hop, compare


def check_golden(bundle: Bundle, classifier: Any) -> Hop:
    """Compare an open `inference.Classifier` with the reference logits that the bundle carries."""
    images, reference = bundle.golden()
    precision = bundle.manifest["precision"]
    return compare("golden output", classifier.logits(images), reference, reference, TOLERANCE[precision])


def check_accuracy(
    bundle: Bundle,
    classifier: Any,
    data: Path,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Accuracy:
    """Measure reference and engine on an ImageFolder.

    Raises:
        InputError: a data set that does not fit the classes, or reference weights that are not there.
    """
    from sit_deploy.data import ImageFolder
    from sit_deploy.make_graph import torch_logits
    from sit_deploy.reference import reference_model

    classes = bundle.manifest["classes"]
    samples = match_labels(ImageFolder(data), classes, bundle.manifest["model"]["num_classes"])
    model = reference_model(bundle, checkpoint)
    batch = max(8, bundle.batch_range[0])
    return measure(
        lambda images: torch_logits(model, images),
        classifier.logits,
        samples,
        bundle.preprocessing(),
        batch,
        progress,
    )


def check_layers(model: Path, classifier: Any, images: Any, runs: int = 10) -> dict[str, Any]:
    """Ask a TensorRT engine for its layers: types and time of each, and whether products run in the types of the graph.

    Args:
        model: the engine's graph. classifier: the open engine. images: float32 (n, 3, H, W), of which the first is run.
    Returns:
        JSON values: `kept`, `raised` and `untold` products by ONNX node, and `layers`, the slowest first.
    """
    import onnx

    from engines import tensorrt_layers as reader

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


def compare_layers(bundle: Bundle) -> Any:
    """Compare TensorRT with ONNX Runtime tensor by tensor on the first golden image: an `engines.layerwise.LayerComparison`.

    Raises:
        InputError: not a TensorRT bundle.
        engines.NoGpuError, engines.EngineNotInstalledError: no GPU, or no Polygraphy.
    """
    import tempfile

    import onnx

    from engines import layerwise
    from sit_deploy.graph.simulate import simulate

    kind = bundle.manifest["engine"]["kind"]
    if kind in engines.ON_CPU:
        raise InputError(
            f"--debug compares TensorRT with ONNX Runtime, and {bundle.path} is built for {kind}; leave it out"
        )
    graph = onnx.load(bundle.model_path)
    feeds = {graph.graph.input[0].name: bundle.golden()[0][:1].repeat(bundle.batch_range[0], axis=0)}
    theirs = layerwise.tensorrt_outputs(kind, bundle.model_path, feeds)
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        # a CPU computes 16-bit graphs in float32, so their rounding is written out
        reference = Path(folder) / "reference.onnx"
        onnx.save(simulate(graph), reference)
        ours = layerwise.onnxruntime_outputs(reference, feeds)
    return layerwise.compare_layers(graph, ours, theirs, TOLERANCE[bundle.manifest["precision"]])
