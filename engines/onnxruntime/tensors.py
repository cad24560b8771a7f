"""Every tensor of a graph on ONNX Runtime's CPU: what the tensors of another engine are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.onnxruntime.library import PROVIDERS, TITLE, session_options
from engines.polygraphy_runs import import_polygraphy, run

if TYPE_CHECKING:
    import numpy as np


def tensor_outputs(
    model: Path, feeds: Mapping[str, np.ndarray], tensors: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Run a graph without optimisations, so that each tensor is there.

    Args:
        model: file of the graph.
        feeds: an array for each of its inputs.
        tensors: the names of those to return, all by default.

    Raises:
        EngineNotInstalledError: Polygraphy is missing. EngineError: the graph does not run.
    """
    import_polygraphy()
    import onnx
    import onnxruntime as ort
    from polygraphy import constants
    from polygraphy.backend.onnx import modify_outputs
    from polygraphy.backend.onnxrt import OnnxrtRunner

    marked = modify_outputs(onnx.load(model), outputs=list(tensors) if tensors else constants.MARK_ALL)
    options = session_options(ort, None)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    def session() -> Any:
        return ort.InferenceSession(marked.SerializeToString(), options, providers=[PROVIDERS["cpu"]])

    return run(OnnxrtRunner(session), feeds, TITLE)
