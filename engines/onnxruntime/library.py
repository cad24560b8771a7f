"""ONNX Runtime itself: how it is imported, the settings of a session, and which execution provider a device means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from engines import cpu
from engines.errors import EngineError
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
    """The session options that an engine runs with, on this machine."""
    options = session_options(ort, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if cpu.int8_saturates():
        # Exact and slower INT8 kernels; decided here, as the engine may come from another CPU.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


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
