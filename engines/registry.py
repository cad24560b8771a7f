"""The engines there are, a line each, and which of them to use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from engines.errors import EngineError, EngineNotInstalledError, NoGpuError
from engines.install import pip_install

if TYPE_CHECKING:
    from engines.base import Engine, Support

# kind: the `Engine` of it, imported when it is asked for. `select` tries them in this order.
ENGINES = {
    "tensorrt": "engines.tensorrt.engine:TensorRT",
    "tensorrt-rtx": "engines.tensorrt.engine:TensorRTRTX",
    "onnxruntime": "engines.onnxruntime.engine:OnnxRuntime",
    "openvino": "engines.openvino.engine:OpenVino",
}
KINDS = tuple(ENGINES)


def engine_class(kind: str) -> type[Engine]:
    """The class of a kind, with what it says of itself; no runtime is imported.

    Raises:
        EngineError: there is no such kind; the nearest name is suggested.
    """
    if kind not in ENGINES:
        from difflib import get_close_matches

        near = get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise EngineError(f"unknown engine {kind!r}{hint} (engines: {', '.join(KINDS)})")
    module, _, name = ENGINES[kind].partition(":")
    engine: type[Engine] = getattr(import_module(module), name)
    return engine


def get(kind: str) -> Engine:
    """The engine of that kind; whether its runtime is installed shows when it is used.

    Raises:
        EngineError: there is no such kind; the nearest name is suggested.
    """
    return engine_class(kind)()


def select(kind: str = "auto") -> tuple[Engine, str]:
    """Choose an engine to build with, and say why in one plain sentence.

    `auto` takes TensorRT where it and a GPU are there, else TensorRT-RTX where it is installed
    (it builds without a GPU) unless its engines do not run on the GPU that is here, else ONNX Runtime, else OpenVINO. Any
    other kind is taken as asked for, if it can build here.

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
    refused: list[str] = []
    for candidate in KINDS:
        engine = get(candidate)
        answer = engine.probe()
        if answer.can_build and not answer.foreign_gpu:
            before = f" ({'; '.join(refused)})" if refused else ""
            return engine, f"{candidate} was chosen: {answer.reason}{before}."
        refused.append(f"{candidate} was passed over: {answer.reason}")
    raise EngineNotInstalledError(
        "no inference runtime can build here",
        f"run {pip_install('onnxruntime')} (any CPU) or {pip_install('tensorrt-rtx')} (NVIDIA GPUs)",
    )


def support() -> list[Support]:
    """What each kind can do on this machine, in the order of `KINDS`."""
    return [get(kind).probe() for kind in KINDS]


def with_precision(precision: str, *, on_cpu: bool = False) -> str:
    """The kind to name to somebody whose engine has no kernels for a precision: the first that has, and builds anywhere.

    Args:
        precision: the one looked for.
        on_cpu: one for CPUs rather, where this CPU has it.
    """
    if on_cpu:
        for kind in KINDS:
            engine = get(kind)
            if (
                engine.on_cpu
                and precision in engine.precisions
                and engine.probe().can_run
                and not engine.lacks(precision)
            ):
                return kind
    having = [kind for kind in KINDS if precision in engine_class(kind).precisions]
    return next((kind for kind in having if engine_class(kind).builds_anywhere), having[0])
