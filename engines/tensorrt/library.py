"""The two packages that share TensorRT's API, and how each is imported."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from engines.errors import EngineNotInstalledError
from engines.tensorrt.features import Features


@dataclass(frozen=True)
class Flavour:
    """What differs between the two packages."""

    kind: str
    title: str
    module: str
    install: str
    needs_gpu_to_build: bool
    has_timing_cache: bool  # TensorRT-RTX keeps the calls and makes them do nothing
    has_hardware_levels: bool  # TensorRT-RTX keeps the setter and warns that it is unsupported


FLAVOURS = {
    flavour.kind: flavour
    for flavour in (
        Flavour(
            "tensorrt", "TensorRT", "tensorrt", "run `pip install sit-deploy[tensorrt]`", True, True, True
        ),
        Flavour(
            "tensorrt-rtx",
            "TensorRT-RTX",
            "tensorrt_rtx",
            "run `pip install tensorrt-rtx`",
            False,
            False,
            False,
        ),
    )
}


def import_module(flavour: Flavour) -> ModuleType:
    """Import the package of a flavour.

    Raises:
        EngineNotInstalledError: it is missing, or broken.
    """
    try:
        trt = importlib.import_module(flavour.module)
    except Exception as error:  # a broken library may raise anything while it loads
        if isinstance(error, ModuleNotFoundError) and error.name == flavour.module:
            raise EngineNotInstalledError(f"{flavour.title} is not installed", flavour.install) from None
        cause = " ".join(str(error).split()) or type(error).__name__
        raise EngineNotInstalledError(
            f"{flavour.title} is installed but cannot be imported ({cause})",
            "reinstall it and check that its libraries are found",
        ) from error
    if not hasattr(trt, "Builder") or not hasattr(trt, "OnnxParser"):
        raise EngineNotInstalledError(
            f"the package {flavour.module} is installed but has no builder (lean runtime?)",
            flavour.install,
        )
    lacks = Features.of(trt).unsupported
    if lacks:
        raise EngineNotInstalledError(
            f"{flavour.title} {trt.__version__} {lacks}", "install TensorRT 8.6 or newer"
        )
    return trt
