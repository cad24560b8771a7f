"""Inference runtimes behind one face: build an engine from ONNX, run it, time it.

    engine = engines.get("onnxruntime")
    engine.build(Path("model.onnx"), Path("engine.onnx"), engines.BuildOptions())
    with engine.load(Path("engine.onnx"), threads=2) as runner:
        logits = runner.infer({"images": images})["logits"]

Importing this package loads no runtime; `get` and `probe` do.
"""

from __future__ import annotations

from engines.base import BuildOptions, Engine, EngineInfo, EngineOrigin, Runner, Support, TensorSpec
from engines.errors import (
    EngineBuildError,
    EngineError,
    EngineInputError,
    EngineLoadError,
    EngineNotInstalledError,
    EngineRunError,
    NoGpuError,
)

__all__ = [
    "KINDS",
    "ON_CPU",
    "TITLES",
    "BuildOptions",
    "Engine",
    "EngineBuildError",
    "EngineError",
    "EngineInfo",
    "EngineInputError",
    "EngineLoadError",
    "EngineNotInstalledError",
    "EngineOrigin",
    "EngineRunError",
    "NoGpuError",
    "Runner",
    "Support",
    "TensorSpec",
    "get",
    "select",
    "support",
]

KINDS = ("tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
TITLES = {  # for people
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
ON_CPU = ("onnxruntime", "openvino")  # what these build is for a CPU


def get(kind: str) -> Engine:
    """The engine of that kind; whether its runtime is installed shows when it is used.

    Raises:
        EngineError: there is no such kind; the nearest name is suggested.
    """
    if kind == "onnxruntime":
        from engines.onnxruntime.engine import OnnxRuntime

        return OnnxRuntime()
    if kind == "openvino":
        from engines.openvino.engine import OpenVino

        return OpenVino()
    if kind in ("tensorrt", "tensorrt-rtx"):
        from engines.tensorrt.engine import TensorRT

        return TensorRT(kind)
    from difflib import get_close_matches

    near = get_close_matches(kind, KINDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise EngineError(f"unknown engine {kind!r}{hint} (engines: {', '.join(KINDS)})")


def select(kind: str = "auto") -> tuple[Engine, str]:
    """Choose an engine to build with, and say why in one plain sentence.

    `auto` takes TensorRT where it and a GPU are there, else TensorRT-RTX where it is installed
    (it builds without a GPU), else ONNX Runtime, else OpenVINO. Any other kind is taken as asked for, if it can
    build here.

    Raises:
        EngineError: unknown kind.
        EngineNotInstalledError: the kind asked for, or every kind, is missing.
        NoGpuError: the kind asked for is installed and needs a GPU to build.
    """
    if kind != "auto":
        engine = get(kind)
        answer = engine.probe()
        if answer.can_build:
            return engine, f"{kind} was asked for: {answer.reason}."
        remedy = answer.remedy or f"choose another engine ({', '.join(KINDS)})"
        if answer.installed:
            raise NoGpuError(f"{answer.reason}; {remedy}")
        raise EngineNotInstalledError(answer.reason, remedy)
    refused = []
    for candidate in KINDS:
        engine = get(candidate)
        answer = engine.probe()
        if answer.can_build:
            before = f" ({'; '.join(refused)})" if refused else ""
            return engine, f"{candidate} was chosen: {answer.reason}{before}."
        refused.append(f"{candidate} was passed over: {answer.reason}")
    raise EngineNotInstalledError(
        "no inference runtime can build here",
        "run `pip install onnxruntime` (any CPU) or `pip install tensorrt-rtx` (NVIDIA GPUs)",
    )


def support() -> list[Support]:
    """What each kind can do on this machine, in the order of `KINDS`."""
    return [get(kind).probe() for kind in KINDS]
