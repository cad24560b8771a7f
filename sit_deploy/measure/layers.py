"""The layers of an engine as its runtime tells of them: the time of each, and of a TensorRT engine the types they run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engines
from sit_deploy.bundle import Bundle


def check_layers(model: Path, classifier: Any, images: Any, runs: int = 10) -> dict[str, Any]:
    """Ask a TensorRT engine for its layers: types and time of each, and whether products run in the types of the graph.

    Args:
        model: the engine's graph.
        classifier: the open engine.
        images: float32 (n, 3, H, W), of which the first is run.
        runs: that the times are of.

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
    kind = bundle.manifest.engine.kind
    with engines.get(kind).load(bundle.engine_path, threads=threads, origin=bundle.origin) as runner:
        feeds = {runner.inputs[0].name: batch}
    found = layer_times(kind, bundle.engine_path, feeds, runs, threads)
    whole = sum(layer.ms for layer in found)
    rows = [
        {"layer": row.layer, "types": [row.operator], "ms": row.ms, "share": row.ms / whole, "tactic": ""}
        for row in sorted(found, key=lambda row: -row.ms)
    ]
    return {"kept": None, "raised": None, "untold": None, "layers": rows}
