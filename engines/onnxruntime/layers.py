"""The time of each layer of an ONNX Runtime engine on a CPU, by its own profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import LayerTime
from engines.errors import EngineError
from engines.onnxruntime.library import PROVIDERS, open_graph, running_options

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

_WARM_UP = 3  # runs


def profile(
    ort: ModuleType, engine_path: Path, feeds: Mapping[str, np.ndarray], runs: int, threads: int | None
) -> tuple[LayerTime, ...]:
    """Run an engine with the profiler on; return its layers in the order that they run.

    Raises:
        EngineError: it does not run.
    """
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        options = running_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = open_graph(ort, str(engine_path), options, PROVIDERS["cpu"])
            for _ in range(_WARM_UP + runs):
                session.run(None, dict(feeds))
            written = session.end_profiling()
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise EngineError(f"ONNX Runtime cannot profile {engine_path}: {error}") from error
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    layers: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = event["args"].get("op_name", "")
            layers[name.removesuffix("_kernel_time"), operator].append(event["dur"] / 1e3)
    return tuple(
        LayerTime(layer, operator, statistics.median(ms[_WARM_UP:]))
        for (layer, operator), ms in layers.items()
    )
