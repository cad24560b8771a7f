"""Opening a TensorRT plan: refuse a stale one, deserialise, give it its weights where it was built without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engines.base import EngineOrigin
from engines.errors import EngineLoadError
from engines.tensorrt.cuda import CudaDevice
from engines.tensorrt.library import Library, gpu_targets
from engines.tensorrt.messages import Messages, builder_problems
from engines.tensorrt.runtime_cache import RuntimeCache

_log = logging.getLogger(__name__)


def check_origin(library: Library, device: CudaDevice, origin: EngineOrigin) -> None:
    """Refuse an engine that was built for another library or GPU, before TensorRT sees a byte of it.

    A plan is bound to the release that wrote it unless it was built version-compatible, and to the compute capabilities
    it was built for unless it was built hardware-compatible (NVIDIA TensorRT developer guide, "Version compatibility" and
    "Hardware compatibility"). Where the library can say for itself whether a plan runs on a GPU that was not among its targets,
    it is left to it.

    Raises:
        EngineLoadError: says what was built for what, and how to build it again.
    """
    title, version = library.title, library.version
    details = origin.details
    if origin.version != version and not details.get("version_compatible"):
        raise EngineLoadError(
            f"the engine was built by {title} {origin.version}, and {version} is installed; install "
            f"{origin.version}, or build it again: {origin.rebuild}"
        )
    here = device.compute_capability
    if here not in origin.compute_capabilities and not _compatible(here, origin):
        if library.features.engine_validity:
            _log.warning("the engine was built for %s, and GPU %d is %s", origin.target, device.number, here)
            return
        built_for = ", ".join(origin.compute_capabilities)
        raise EngineLoadError(
            f"the engine was built for {built_for}, and GPU {device.number} here is {here} ({device.name}); build it again "
            f"for this GPU: {origin.rebuild}"
        )
    if origin.gpu and origin.gpu != device.name:
        _log.warning(
            "the engine was tuned on %s and runs on %s: it may be slower than one built here",
            origin.gpu,
            device.name,
        )


def _compatible(here: str, origin: EngineOrigin) -> bool:
    """Whether the engine was built to run on other architectures, and this is one of them."""
    if origin.details.get("hardware_compatibility") != "ampere_plus":
        return False
    return here[2:].isdecimal() and int(here[2:]) >= 80


def deserialize(library: Library, plan: bytes, path: Path, device: CudaDevice) -> tuple[Any, Any]:
    """Return (runtime, engine) of a plan.

    Raises:
        EngineLoadError: the library refuses it; its own words on one line.
    """
    trt, title, messages = library.trt, library.title, library.messages
    runtime = library.make("Runtime", library.logger)
    if library.features.engine_validity:
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity == trt.EngineValidity.INVALID:
            listed, here = gpu_targets(trt) or (), device.compute_capability
            remedy = "build it again"
            if here not in listed:
                remedy = f"it is for {', '.join(listed)}, and {device.name} is {here}: build with --engine tensorrt for this GPU"
            raise EngineLoadError(
                f"{path} is not an engine that {title} can run here ({_reasons(library, diagnostics)}); {remedy}"
            )
        if validity == trt.EngineValidity.SUBOPTIMAL:
            _log.warning("%s runs here, but slower than one built for this GPU", path)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        said = _said(messages)
        if "memory" in said.lower() and "size" not in said.lower():
            raise device.out_of_memory(
                f"{path.name}", len(plan), "free memory that other programs hold, or build --precision fp16"
            )
        raise EngineLoadError(f"{title} cannot open {path}: {said}; copy it again or build it again")
    return runtime, engine


def make_context(library: Library, engine: Any, cache: RuntimeCache | None) -> tuple[Any, int]:
    """Return an execution context of an engine and the bytes of device memory that it has to be given; (None, 0) if it is refused.

    What TensorRT-RTX is told is what its documents ask for where a CUDA graph is captured: memory from outside, since
    what a context allocates while it runs cannot be captured, and kernels of a new shape compiled before they run. By default
    it runs slower ones meanwhile and compiles in a thread of its own: a graph would keep the slower ones for good, and a
    destructor, which waits for that thread and holds Python's lock, would wait for ever if the thread logs something.
    """
    if cache is None:
        return engine.create_execution_context(), 0
    trt = library.trt
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if library.features.eager_kernels:
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
    cache.attach(config)
    context = engine.create_execution_context(config)
    return context, 0 if context is None else activation_bytes(engine) or 0


def activation_bytes(engine: Any) -> int | None:
    """The device memory that a context of the engine needs beside its tensors; None where the engine does not tell."""
    for name in ("device_memory_size_v2", "device_memory_size"):
        if hasattr(engine, name):
            return int(getattr(engine, name))
    return None


def refit(library: Library, engine: Any, weights: Path) -> None:
    """Give an engine built without weights those of its ONNX file.

    Raises:
        EngineLoadError: the library cannot, or the file does not fit the engine.
    """
    if not library.features.onnx_refit:
        raise EngineLoadError(
            f"{library.title} here cannot refit engines from ONNX; build without --strip-weights"
        )
    if not weights.is_file():
        raise EngineLoadError(
            f"the engine has no weights of its own, and {weights} is not there to give it them"
        )
    refitter = library.make("Refitter", engine, library.logger)
    parser = library.make("OnnxParserRefitter", refitter, library.logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise EngineLoadError(f"the weights of {weights} do not fit the engine: {_said(library.messages)}")


def _reasons(library: Library, diagnostics: int) -> str:
    """What TensorRT-RTX names as the reasons for refusing a plan, and what it logged, in a few words."""
    flags = getattr(library.trt, "EngineInvalidityDiagnostics", None)
    named = [
        name.lower().replace("_", " ")
        for name, flag in (flags.__members__.items() if flags else ())
        if int(diagnostics) & int(flag.value)
    ]
    return "; ".join([*named, *builder_problems(library.messages)[:3]]) or "no reason given"


def _said(messages: Messages) -> str:
    return "; ".join(builder_problems(messages)[:3]) or "no reason given"
