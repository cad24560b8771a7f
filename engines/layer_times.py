"""The time of each layer of an engine on a CPU, as the runtime's own profiler tells it.

TensorRT's engines tell it themselves: see `tensorrt_layers`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError

if TYPE_CHECKING:
    import numpy as np

_WARM_UP = 3


@dataclass(frozen=True)
class LayerTime:
    """A layer as the engine runs it.

    Attributes:
        operator: its kind, in the runtime's words.
        ms: the median of its runs, milliseconds.
    """

    layer: str
    operator: str
    ms: float


def layer_times(
    kind: str, engine_path: Path, feeds: Mapping[str, np.ndarray], runs: int = 20, threads: int | None = None
) -> tuple[LayerTime, ...]:
    """Run an engine with its runtime's profiler on; return its layers in the order they run.

    Args:
        kind: "onnxruntime" or "openvino".
        engine_path: of the engine.
        feeds: an array for each of its inputs.
        runs: that the times are a mean of.
        threads: of the CPU; the runtime's choice by default.

    Raises:
        EngineError: another kind, or an engine that does not run.
    """
    if kind == "onnxruntime":
        return _onnxruntime(engine_path, feeds, runs, threads)
    if kind == "openvino":
        return _openvino(engine_path, feeds, runs, threads)
    raise EngineError(f"{kind} engines tell the times of their layers themselves; run them where a GPU is")


def _onnxruntime(
    engine_path: Path, feeds: Mapping[str, np.ndarray], runs: int, threads: int | None
) -> tuple[LayerTime, ...]:
    import onnxruntime as ort

    from engines.onnxruntime.engine import running_options

    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        options = running_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(str(engine_path), options, providers=["CPUExecutionProvider"])
            for _ in range(_WARM_UP + runs):
                session.run(None, dict(feeds))
            written = session.end_profiling()
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise EngineError(f"ONNX Runtime cannot profile {engine_path}: {error}") from error
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = event["args"].get("op_name", "")
            found[name.removesuffix("_kernel_time"), operator].append(event["dur"] / 1e3)
    return tuple(
        LayerTime(layer, operator, statistics.median(ms[_WARM_UP:]))
        for (layer, operator), ms in found.items()
    )


def _openvino(
    engine_path: Path, feeds: Mapping[str, np.ndarray], runs: int, threads: int | None
) -> tuple[LayerTime, ...]:
    from engines.openvino.engine import import_openvino, settings

    ov = import_openvino()
    try:
        options = {**settings(ov, threads), ov.properties.enable_profiling: True}
        request = ov.Core().compile_model(str(engine_path), "CPU", options).create_infer_request()
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in range(_WARM_UP + runs):
            request.infer(dict(feeds), share_inputs=True, share_outputs=True)
            if run < _WARM_UP:
                continue
            for info in request.profiling_info:
                if info.status == ov.ProfilingInfo.Status.EXECUTED:
                    found[info.node_name, info.node_type].append(1e3 * info.real_time.total_seconds())
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot profile {engine_path}: {error}") from error
    return tuple(LayerTime(layer, kind, statistics.median(ms)) for (layer, kind), ms in found.items())
