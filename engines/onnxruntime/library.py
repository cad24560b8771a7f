"""ONNX Runtime itself: how it is imported, the settings of a session, and which execution provider a device means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import cpu
from engines.errors import EngineError
from engines.graph_file import holds_fp8, read_model
from engines.imports import import_runtime

if TYPE_CHECKING:
    from types import ModuleType

TITLE = "ONNX Runtime"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERROR = 3  # ONNX Runtime's severity: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def import_onnxruntime() -> ModuleType:
    """Import the package.

    Raises:
        EngineNotInstalledError: it is missing, or broken.
    """
    # Its official wheels report usage over the network; a tool that deploys other people's models must not.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_runtime("onnxruntime", TITLE)


def session_options(ort: ModuleType, threads: int | None) -> Any:
    """The options that every session here has."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def running_options(ort: ModuleType, threads: int | None) -> Any:
    """The session options that an engine runs with, on this machine: where nobody said how many threads, no more than may run at a time."""
    # by itself it starts one for each core of the machine, whatever is left to this process
    options = session_options(ort, cpu.cpu_count() if threads is None and cpu.limited() else threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if cpu.int8_saturates():
        # Exact and slower INT8 kernels; decided here, as the engine may come from another CPU.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_graph(ort: ModuleType, source: str | bytes, options: Any, provider: Any) -> Any:
    """Make a session of a graph.

    Releases before 1.32 join FP8 products and their Q/DQ to operators of INT8, and then refuse their own work
    (https://github.com/microsoft/onnxruntime/issues/22269). Where a graph with FP8 is refused, it is taken without such joining,
    which no FP8 kernel of a CPU wants anyway; the numbers are the same.

    Args:
        ort: the package.
        source: the graph's file, or the graph itself.
        options: of the session; changed where the graph is taken without joining.
        provider: the execution provider.
    """
    try:
        return ort.InferenceSession(source, options, providers=[provider])
    except Exception:  # ONNX Runtime's errors share no base but Exception
        if not _holds_fp8(source):
            raise
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(source, options, providers=[provider])


def _holds_fp8(source: str | bytes) -> bool:
    try:
        import onnx  # which is not where an engine only runs

        if isinstance(source, bytes):
            return holds_fp8(onnx.load_from_string(source))
        return holds_fp8(read_model(Path(source)))
    except Exception:  # what cannot be read was refused for that
        return False


def has_provider(ort: ModuleType, provider: str) -> bool:
    """Whether this build of ONNX Runtime has an execution provider."""
    return provider in ort.get_available_providers()


def provider_of(ort: ModuleType, device: str, error: type[EngineError]) -> str | tuple[str, dict[str, str]]:
    """The execution provider for "cpu", "cuda" or "cuda:N", with its device number.

    Args:
        ort: the package.
        device: "cpu", "cuda" or "cuda:N".
        error: what is raised where there is none.
    """
    name, colon, index = device.partition(":")
    if name not in PROVIDERS or (colon and (name == "cpu" or not index.isdecimal())):
        raise error(f"unknown device {device!r}; use cpu, cuda or cuda:N")
    provider = PROVIDERS[name]
    if not has_provider(ort, provider):
        raise error(
            f"device {device} asked for, but this ONNX Runtime has no {provider}; "
            "install onnxruntime-gpu in place of onnxruntime, or use device cpu"
        )
    return (provider, {"device_id": index or "0"}) if name == "cuda" else provider


def one_line(error: BaseException) -> str:
    """The message without ONNX Runtime's "[ONNXRuntimeError] : 2 : CODE : " and line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
