"""ONNX Runtime: the engine for a CPU, and for CUDA where its GPU build is installed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import cpu
from engines.base import (
    BuildOptions,
    Engine,
    EngineInfo,
    EngineOrigin,
    Progress,
    Runner,
    Support,
    TensorSpec,
    refuse_gpu_options,
)
from engines.errors import (
    EngineBuildError,
    EngineError,
    EngineLoadError,
    EngineNotInstalledError,
)
from engines.files import atomic_path
from engines.graph_file import check_batch, input_specs, read_model
from engines.imports import import_runtime, require_threads

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import onnx

# Changes a model in place before ONNX Runtime optimises it; returns how often each rule applied.
Rewrite = Callable[["onnx.ModelProto"], Mapping[str, int]]

_ERROR = 3  # ONNX Runtime's severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime(Engine):
    """Build: optimise the graph and save it as ONNX again. Run: an inference session.

    Args:
        rewrites: our own graph fusions, applied in this order before ONNX Runtime's; None takes those of
            `engines.onnxruntime.fusion` for a CPU, and none for a GPU.
    """

    kind = "onnxruntime"
    filename = "engine.onnx"

    def __init__(self, rewrites: Sequence[Rewrite] | None = None) -> None:
        self._rewrites = None if rewrites is None else tuple(rewrites)

    def probe(self) -> Support:
        try:
            ort = _import()
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        known = [name for name, provider in _PROVIDERS.items() if _has(ort, provider)]
        reason = f"ONNX Runtime {ort.__version__} builds and runs here ({', '.join(known)})"
        return Support(self.kind, True, ort.__version__, True, True, reason)

    def check(self, options: BuildOptions) -> None:
        refuse_gpu_options(options, "ONNX Runtime")

    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        """Optimise to the "extended" level and save.

        The level above ("all") picks memory layouts for the CPU at hand, so a file saved there
        is only good on machines like it; `load` applies that rest where the engine runs.
        """
        ort = _import()
        self.check(options)
        provider = _provider(ort, options.device, EngineBuildError)
        started = time.perf_counter()
        if progress:
            progress("reading ONNX", 0, 3)
        rewrites = _rewrites_for(options.device) if self._rewrites is None else self._rewrites
        model = read_model(onnx_path, weights=bool(rewrites))
        check_batch(input_specs(model), options.dynamic_batch, required=False)
        nodes_before = len(model.graph.node)
        applied = [dict(rewrite(model)) for rewrite in rewrites]
        # By path, ONNX Runtime finds weights stored beside the model; rewritten, they are inside.
        rewritten = any(count for counts in applied for count in counts.values())
        source = model.SerializeToString() if rewritten else str(onnx_path)
        del model
        session_options = _session_options(ort, options.threads)
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if progress:
            progress("optimising the graph", 1, 3)
        with atomic_path(engine_path) as temporary:
            session_options.optimized_model_filepath = str(temporary)
            try:
                ort.InferenceSession(source, session_options, providers=[provider])
            except Exception as error:  # ONNX Runtime's errors share no base but Exception
                raise EngineBuildError(
                    f"ONNX Runtime cannot build {onnx_path}: {_one_line(error)}"
                ) from error
            if progress:
                progress("checking the saved engine", 2, 3)
            optimised = read_model(temporary)
        from engines.onnxruntime.int8 import int8_summary

        operators = Counter(node.op_type for node in optimised.graph.node)
        details: dict[str, Any] = {
            "optimisation": "extended",
            "nodes_before": nodes_before,
            "nodes": len(optimised.graph.node),
            "operators": dict(sorted(operators.items())),
            "int8": int8_summary(optimised),
            "rewrites": {name: count for counts in applied for name, count in counts.items()},
        }
        if progress:
            progress("engine saved", 3, 3)
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
        ort = _import()
        device = device or "cpu"
        provider = _provider(ort, device, EngineLoadError)
        require_threads(threads)
        if not engine_path.is_file():
            raise EngineLoadError(f"{engine_path}: no such engine file")
        try:
            session = ort.InferenceSession(
                str(engine_path), running_options(ort, threads), providers=[provider]
            )
        except Exception as error:  # as in build
            raise EngineLoadError(
                f"{engine_path} is not an engine ONNX Runtime can load: {_one_line(error)}"
            ) from error
        wanted = provider[0] if isinstance(provider, tuple) else provider
        if wanted not in session.get_providers():
            # ONNX Runtime falls back to the CPU with no more than a log line.
            raise EngineLoadError(
                f"device {device} asked for, but ONNX Runtime could not start {wanted}; "
                "check the CUDA and cuDNN libraries, or use device cpu"
            )
        return OnnxRuntimeRunner(session)


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session."""

    def __init__(self, session: Any) -> None:
        super().__init__(
            tuple(map(_tensor_spec, session.get_inputs())),
            tuple(map(_tensor_spec, session.get_outputs())),
        )
        self._session = session
        self._output_names = [spec.name for spec in self.outputs]

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self._output_names, dict(feeds))
        except Exception as error:  # as in build
            raise EngineError(f"ONNX Runtime failed while running: {_one_line(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def _close(self) -> None:
        self._session = None


def _import() -> ModuleType:
    # Its official wheels report usage over the network; a tool that deploys other people's models must not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_runtime("onnxruntime", "ONNX Runtime")


def _rewrites_for(device: str) -> tuple[Rewrite, ...]:
    if device != "cpu":
        return ()
    from engines.onnxruntime.fusion import fuse_for_cpu

    return (fuse_for_cpu,)


def running_options(ort: ModuleType, threads: int | None) -> Any:
    """Return the session options that an engine runs with, on this machine."""
    options = _session_options(ort, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if cpu.int8_saturates():
        # Exact and slower INT8 kernels; decided here, as the engine may come from another CPU.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _session_options(ort: ModuleType, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _has(ort: ModuleType, provider: str) -> bool:
    return provider in ort.get_available_providers()


def _provider(ort: ModuleType, device: str, error: type[EngineError]) -> str | tuple[str, dict[str, str]]:
    """The execution provider for "cpu", "cuda" or "cuda:N", with its device number."""
    name, colon, index = device.partition(":")
    if name not in _PROVIDERS or (colon and (name == "cpu" or not index.isdecimal())):
        raise error(f"unknown device {device!r}; use cpu, cuda or cuda:N")
    provider = _PROVIDERS[name]
    if not _has(ort, provider):
        raise error(
            f"device {device} asked for, but this ONNX Runtime has no {provider}; "
            "install onnxruntime-gpu in place of onnxruntime, or use device cpu"
        )
    return (provider, {"device_id": index or "0"}) if name == "cuda" else provider


def _tensor_spec(node: Any) -> TensorSpec:
    """ONNX Runtime's "tensor(float)" in numpy's words; a symbolic dimension is a string or None."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, shape, dtype)


def _one_line(error: BaseException) -> str:
    """The message without ONNX Runtime's "[ONNXRuntimeError] : 2 : CODE : " and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
