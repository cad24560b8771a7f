"""The time of each layer of an OpenVINO engine, by its own profiler."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import LayerTime
from engines.errors import EngineError
from engines.openvino.bfloat16 import in_bfloat16
from engines.openvino.library import settings

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

_WARM_UP = 3  # runs


def profile(
    ov: ModuleType, engine_path: Path, feeds: Mapping[str, np.ndarray], runs: int, threads: int | None
) -> tuple[LayerTime, ...]:
    """Run an engine with the profiler on; return its layers in the order that they run.

    Raises:
        EngineError: it does not run.
    """
    layers: dict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        core = ov.Core()
        model = core.read_model(str(engine_path))
        options = {
            **settings(ov, threads, low=in_bfloat16(model)),
            ov.properties.enable_profiling: True,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()
        for run in range(_WARM_UP + runs):
            request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            if run < _WARM_UP:
                continue
            for info in request.profiling_info:
                if info.status == ov.ProfilingInfo.Status.EXECUTED:
                    layers[info.node_name, info.node_type].append(1e3 * info.real_time.total_seconds())
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot profile {engine_path}: {error}") from error
    return tuple(
        LayerTime(layer, operator, statistics.median(ms)) for (layer, operator), ms in layers.items()
    )
