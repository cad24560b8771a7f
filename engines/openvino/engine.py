"""OpenVINO: Intel's runtime for CPUs, as an engine of its own.

Build: convert the ONNX graph to OpenVINO's format, `engine.xml` with its weights in `engine.bin` beside it. Run: compile it for
the CPU at hand, in the types of the graph.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import Engine, EngineInfo, EngineOrigin, LayerTime, Progress, Support
from engines.build_options import BuildOptions, refuse_gpu_options
from engines.errors import EngineBuildError, EngineLoadError, EngineNotInstalledError
from engines.graph_file import attention_graph
from engines.openvino.library import TITLE, import_openvino, require_cpu, version_of
from engines.performance import require_streams

if TYPE_CHECKING:
    import numpy as np

    from engines.openvino.runner import OpenVinoRunner


class OpenVino(Engine):
    """Build: convert and save. Run: an inference request of the CPU plugin."""

    kind = "openvino"
    title = TITLE
    package = "openvino"
    filename = "engine.xml"
    on_cpu = True
    attention_since = "OpenVINO 2026.4"
    precisions = ("fp32", "fp16", "bf16", "int8")
    rests = ("fp32", "fp16", "bf16")
    int8_convolutions = True
    norms_cost_a_scaling = True
    tells_kernels = True
    several_at_once = True

    def probe(self) -> Support:
        try:
            version = version_of(import_openvino())
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        reason = f"{self.title} {version} builds and runs on this CPU"
        return Support(self.kind, True, version, True, True, reason)

    def _reads_attention(self) -> bool:
        ov = import_openvino()
        try:
            ov.Core().read_model(attention_graph())
        except Exception:  # OpenVINO's errors share no base but Exception
            return False
        return True

    def lacks(self, precision: str) -> str | None:
        from engines.openvino.lacking import lacking

        return lacking(import_openvino(), precision) if precision in ("bf16", "int8") else None

    def check(self, options: BuildOptions) -> None:
        require_cpu(options.device, EngineBuildError)
        refuse_gpu_options(options, self.title)

    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        """Convert, compile once to see that it can be, and save; both files appear whole or not at all."""
        from engines.openvino.build import build_model

        ov = import_openvino()
        self.check(options)
        started = time.perf_counter()
        kernels, details = build_model(ov, onnx_path, engine_path, options, progress)
        return EngineInfo(
            kind=self.kind,
            version=version_of(ov),
            filename=engine_path.name,
            size_bytes=engine_path.stat().st_size + engine_path.with_suffix(".bin").stat().st_size,
            build_seconds=time.perf_counter() - started,
            target="cpu",
            details=details,
            kernels=tuple(kernel.to_dict() for kernel in kernels),
        )

    def load(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> OpenVinoRunner:
        """Open an engine; newer releases read the files of older ones, and say so where they do not."""
        from engines.openvino.runner import OpenVinoRunner, compile_engine

        ov = import_openvino()
        require_cpu(device or "cpu", EngineLoadError)
        return OpenVinoRunner(compile_engine(ov, engine_path, threads))

    def load_for_throughput(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        streams: int | None = None,
        origin: EngineOrigin | None = None,
    ) -> OpenVinoRunner:
        from engines.openvino.library import for_throughput
        from engines.openvino.runner import OpenVinoRunner, compile_engine

        ov = import_openvino()
        require_streams(streams, threads)
        compiled = compile_engine(ov, engine_path, threads, for_throughput(ov, streams))
        return OpenVinoRunner(compiled, compiled.get_property(ov.properties.optimal_number_of_infer_requests))

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
        from engines.openvino.layers import profile

        return profile(import_openvino(), engine_path, feeds, runs, threads)
