"""Opening a TensorRT plan: refuse a stale one, deserialise, give it its weights where it was built without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engines.base import EngineOrigin
from engines.errors import EngineLoadError
from engines.tensorrt.cuda import CudaDevice
from engines.tensorrt.library import Library
from engines.tensorrt.messages import Messages, builder_problems

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
    runtime = trt.Runtime(library.logger)
    if library.features.engine_validity:
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity == trt.EngineValidity.INVALID:
            raise EngineLoadError(
                f"{path} is not an engine that {title} can run here ({_said(messages)}; diagnostics {diagnostics}); "
                "build it again"
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
    refitter = library.trt.Refitter(engine, library.logger)
    parser = library.trt.OnnxParserRefitter(refitter, library.logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise EngineLoadError(f"the weights of {weights} do not fit the engine: {_said(library.messages)}")


def _said(messages: Messages) -> str:
    return "; ".join(builder_problems(messages)[:3]) or "no reason given"
