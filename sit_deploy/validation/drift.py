"""Where a graph's residual stream leaves that of the float32 graph: after which block, and by how much.

Both run on ONNX Runtime's CPU, the rounding of 16 bits written out. Only the stream is compared: between its tensors an
exact rewrite (scales that migrated before quantization) may hold other values that mean the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import layer_comparison
from sit_deploy.bundle import Bundle
from sit_deploy.precisions import TOLERANCE
from sit_deploy.validation.reference import export_again, reference_model

if TYPE_CHECKING:
    import numpy as np
    import onnx


def stream_tensors(graph: onnx.ModelProto) -> list[str]:
    """Return the tensors of the residual stream in order: sums of two computed tensors, slimmed tokens, and the outputs.

    The logits of attention, to which sizes of tokens are added, are none of it.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    logits = {node.input[0] for node in graph.graph.node if node.op_type == "Softmax"}
    stream = []
    for node in graph.graph.node:
        inner = node.op_type == "Add" and constants.isdisjoint(node.input) and node.output[0] not in logits
        slimmed = node.op_type == "Concat" and node.name.startswith(("tsm.", "reduction."))
        if inner or slimmed:
            stream.append(node.output[0])
    outputs = [output.name for output in graph.graph.output]
    return [name for name in stream if name not in outputs] + outputs


def compare_stream(
    float_graph: onnx.ModelProto, bundle: Bundle, images: np.ndarray
) -> layer_comparison.LayerComparison:
    """Compare a bundle's graph with the float32 graph of the same weights.

    Args:
        float_graph: the float32 graph.
        bundle: of the same weights.
        images: as the bundle's engine takes them; as many as a batch, at most.

    Raises:
        engines.EngineNotInstalledError: Polygraphy is missing.
    """
    import onnx

    from sit_deploy.graph.simulate import simulate

    preprocessing = bundle.preprocessing()
    low = bundle.batch_range[0]
    images = images[[i % len(images) for i in range(low)]]
    normalised = preprocessing.normalise(images) if preprocessing.takes_pixels else images
    graph = onnx.load(bundle.model_path)
    names = [name for name in stream_tensors(float_graph) if name in _tensors(graph)]
    sides: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        for number, (model, given) in enumerate(((float_graph, normalised), (simulate(graph), images))):
            path = Path(folder) / f"{number}.onnx"
            onnx.save(model, path)
            feeds = {model.graph.input[0].name: given}
            sides.append(engines.get("onnxruntime").tensor_outputs(path, feeds, names))
    reference, ours = ({name: side[name] for name in names} for side in sides)
    return layer_comparison.compare_layers(float_graph, reference, ours, TOLERANCE[bundle.manifest.precision])


def debug_on_cpu(bundle: Bundle, checkpoint: Path | None = None) -> layer_comparison.LayerComparison:
    """Export the float32 graph of a bundle's weights again, and compare the bundle's with it on the golden images."""
    from engines.polygraphy_runs import import_polygraphy

    import_polygraphy()  # before the export, which takes half a minute
    from sit_deploy.graph.deploy_form import to_deploy_form

    names = [one.name for one in bundle.outputs]
    float_graph = export_again(bundle, to_deploy_form(reference_model(bundle, checkpoint), names))
    return compare_stream(float_graph, bundle, bundle.golden()[0])


def compare_layers(
    bundle: Bundle, kind: str, checkpoint: Path | None = None
) -> layer_comparison.LayerComparison:
    """Find the first layer that drifts, on the golden images.

    A TensorRT engine is compared with its graph on ONNX Runtime, tensor by tensor; on a CPU the bundle's graph with the
    float32 graph, along the residual stream.

    Args:
        bundle: whose engine it is.
        kind: the engine to debug, the bundle's own or one for a CPU.
        checkpoint: where the reference's weights are now.

    Raises:
        InputError: the weights of a CPU bundle are not there.
        engines.NoGpuError, engines.EngineNotInstalledError: no GPU, or no Polygraphy.
    """
    import onnx

    from sit_deploy.graph.simulate import simulate

    engine = engines.get(kind)
    if not engine.reports_tensors:
        return debug_on_cpu(bundle, checkpoint)
    graph = onnx.load(bundle.model_path)
    feeds = {graph.graph.input[0].name: bundle.golden()[0][:1].repeat(bundle.batch_range[0], axis=0)}
    theirs = engine.tensor_outputs(bundle.model_path, feeds)
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        # a CPU computes 16-bit graphs in float32, so their rounding is written out
        reference = Path(folder) / "reference.onnx"
        onnx.save(simulate(graph), reference)
        ours = engines.get("onnxruntime").tensor_outputs(reference, feeds)
    return layer_comparison.compare_layers(graph, ours, theirs, TOLERANCE[bundle.manifest.precision])


def _tensors(graph: onnx.ModelProto) -> set[str]:
    return {output for node in graph.graph.node for output in node.output}
