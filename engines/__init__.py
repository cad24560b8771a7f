"""Inference runtimes behind one face: build an engine from ONNX, run it, time it.

    engine = engines.get("onnxruntime")
    engine.build(Path("model.onnx"), Path("engine.onnx"), engines.BuildOptions())
    with engine.load(Path("engine.onnx"), threads=2) as runner:
        logits = runner.infer({"images": images})["logits"]

Importing this package loads no runtime; building, loading and `probe` do. `engines.registry` has a line for each.
"""

from __future__ import annotations

from typing import Any

from engines.base import Engine, EngineInfo, EngineOrigin, LayerTime, Support
from engines.build_options import BuildOptions
from engines.errors import (
    EngineBuildError,
    EngineError,
    EngineInputError,
    EngineLoadError,
    EngineNotInstalledError,
    EngineRunError,
    NoGpuError,
)
from engines.registry import KINDS, get, select, support
from engines.runner import Runner, TensorSpec

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
    "LayerTime",
    "NoGpuError",
    "Runner",
    "Support",
    "TensorSpec",
    "get",
    "select",
    "support",
]


def __getattr__(name: str) -> Any:
    """`TITLES` (the names for people, by kind) and `ON_CPU` (kinds that build for a CPU), as the engines say themselves."""
    from engines.registry import engine_class

    if name == "TITLES":
        return {kind: engine_class(kind).title for kind in KINDS}
    if name == "ON_CPU":
        return tuple(kind for kind in KINDS if engine_class(kind).on_cpu)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
