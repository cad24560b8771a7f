"""From an ONNX file to an engine of ONNX Runtime: our own fusions, its optimisations, and the graph saved as ONNX again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from engines.build_options import BuildOptions
from engines.errors import EngineBuildError
from engines.files import atomic_path
from engines.graph_file import check_batch, input_specs, read_model
from engines.onnxruntime.fusion import fuse_for_cpu
from engines.onnxruntime.int8 import int8_summary
from engines.onnxruntime.library import one_line, open_graph, provider_of, session_options

if TYPE_CHECKING:
    from types import ModuleType

    import onnx

# Changes a model in place before ONNX Runtime optimises it; returns how often each rule applied.
Rewrite = Callable[["onnx.ModelProto"], Mapping[str, int]]


def rewrites_for(device: str) -> tuple[Rewrite, ...]:
    """Our own graph fusions for a device, in the order that they are applied in."""
    return (fuse_for_cpu,) if device == "cpu" else ()


def build_graph(
    ort: ModuleType,
    onnx_path: Path,
    engine_path: Path,
    options: BuildOptions,
    rewrites: Sequence[Rewrite],
    progress: Progress | None,
) -> dict[str, Any]:
    """Optimise to the "extended" level and save; return what is worth knowing of it, as JSON values.

    The level above ("all") picks memory layouts for the CPU at hand, so a file saved there
    is only good on machines like it; running applies that rest where the engine runs.

    Raises:
        EngineBuildError: the graph or the device does not suit ONNX Runtime.
    """
    report = progress or (lambda *_: None)
    provider = provider_of(ort, options.device, EngineBuildError)
    report("reading ONNX", 0, 3)
    model = read_model(onnx_path, weights=bool(rewrites))
    check_batch(input_specs(model), options.dynamic_batch, required=False)
    nodes_before = len(model.graph.node)
    applied = [dict(rewrite(model)) for rewrite in rewrites]
    # By path, ONNX Runtime finds weights stored beside the model; rewritten, they are inside.
    rewritten = any(count for counts in applied for count in counts.values())
    source = model.SerializeToString() if rewritten else str(onnx_path)
    del model
    settings = session_options(ort, options.threads)
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    report("optimising the graph", 1, 3)
    with atomic_path(engine_path) as temporary:
        settings.optimized_model_filepath = str(temporary)
        try:
            open_graph(ort, source, settings, provider)
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise EngineBuildError(f"ONNX Runtime cannot build {onnx_path}: {one_line(error)}") from error
        report("checking the saved engine", 2, 3)
        optimised = read_model(temporary)
    operators = Counter(node.op_type for node in optimised.graph.node)
    details = {
        "optimisation": "extended",
        "nodes_before": nodes_before,
        "nodes": len(optimised.graph.node),
        "operators": dict(sorted(operators.items())),
        "int8": int8_summary(optimised),
        "rewrites": {name: count for counts in applied for name, count in counts.items()},
    }
    report("engine saved", 3, 3)
    return details
