"""ONNX Runtime: the engine for a CPU, and for CUDA where its GPU build is installed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import Engine, EngineInfo, EngineOrigin, LayerTime, Progress, Support
from engines.build_options import BuildOptions, refuse_gpu_options
from engines.cpu import cpu_count
from engines.errors import EngineNotInstalledError
from engines.graph_file import attention_graph
from engines.onnxruntime.library import PROVIDERS, TITLE, has_provider, import_onnxruntime, session_options
from engines.performance import require_streams

if TYPE_CHECKING:
    import numpy as np

    from engines.onnxruntime.build import Rewrite
    from engines.onnxruntime.runner import OnnxRuntimeRunner


class OnnxRuntime(Engine):
    """Build: optimise the graph and save it as ONNX again. Run: an inference session.

    Args:
        rewrites: our own graph fusions, applied in this order before ONNX Runtime's; None takes those of
            `engines.onnxruntime.fusion` for a CPU, and none for a GPU.
    """

    kind = "onnxruntime"
    title = TITLE
    package = "onnxruntime"
    filename = "engine.onnx"
    on_cpu = True
    attention_since = "ONNX Runtime 1.23"
    precisions = ("fp32", "fp16", "int8")
    several_at_once = True

    def __init__(self, rewrites: Sequence[Rewrite] | None = None) -> None:
        self._rewrites = None if rewrites is None else tuple(rewrites)

    def probe(self) -> Support:
        try:
            ort = import_onnxruntime()
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        known = [name for name, provider in PROVIDERS.items() if has_provider(ort, provider)]
        reason = f"{self.title} {ort.__version__} builds and runs here ({', '.join(known)})"
        return Support(self.kind, True, ort.__version__, True, True, reason)

    def check(self, options: BuildOptions) -> None:
        refuse_gpu_options(options, self.title)

    def _reads_attention(self) -> bool:
        ort = import_onnxruntime()
        try:
            ort.InferenceSession(
                attention_graph(), session_options(ort, 1), providers=["CPUExecutionProvider"]
            )
        except Exception:  # ONNX Runtime's errors share no base but Exception
            return False
        return True

    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        from engines.onnxruntime.build import build_graph, rewrites_for

        ort = import_onnxruntime()
        self.check(options)
        started = time.perf_counter()
        rewrites = rewrites_for(options.device) if self._rewrites is None else self._rewrites
        details = build_graph(ort, onnx_path, engine_path, options, rewrites, progress)
        return EngineInfo(
            kind=self.kind,
            version=ort.__version__,
            filename=engine_path.name,
            size_bytes=engine_path.stat().st_size,
            build_seconds=time.perf_counter() - started,
            target=options.device,
            details=details,
        )

    def load(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> OnnxRuntimeRunner:
        """Open an engine; every release reads the files of older ones, so `origin` does not matter."""
        from engines.onnxruntime.runner import OnnxRuntimeRunner, open_session

        return OnnxRuntimeRunner(open_session(import_onnxruntime(), engine_path, threads, device or "cpu"))

    def load_for_throughput(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        streams: int | None = None,
        origin: EngineOrigin | None = None,
    ) -> OnnxRuntimeRunner:
        """Open one session for several calls at a time: each computes on its caller's thread, and they share what is left.

        A session may be run by several threads; those of its pool help whichever call wants them.
        """
        from engines.onnxruntime.runner import OnnxRuntimeRunner, open_session

        require_streams(streams, threads)
        whole = threads or cpu_count()
        calls = streams or whole
        # callers compute too, and of the threads of a session one stands for its caller
        session = open_session(import_onnxruntime(), engine_path, whole - calls + 1, "cpu")
        return OnnxRuntimeRunner(session, calls)

    def layer_times(
        self,
        engine_path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        runs: int = 20,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> tuple[LayerTime, ...]:
        """Time the layers on the CPU, whatever the `device`."""
        from engines.onnxruntime.layers import profile

        return profile(import_onnxruntime(), engine_path, feeds, runs, threads)

    def tensor_outputs(
        self, onnx_path: Path, feeds: Mapping[str, np.ndarray], tensors: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        from engines.onnxruntime.tensors import tensor_outputs

        return tensor_outputs(onnx_path, feeds, tensors)
