"""The two packages that share TensorRT's API, how each is imported, and an imported one with what it offers and logs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engines.errors import EngineError, EngineNotInstalledError
from engines.install import pip_install
from engines.tensorrt.features import Features
from engines.tensorrt.messages import Messages, builder_problems, clean, make_logger


@dataclass(frozen=True)
class Flavour:
    """What differs between the two packages."""

    kind: str
    title: str
    module: str
    packages: tuple[str, ...]
    needs_gpu_to_build: bool
    has_timing_cache: bool
    has_hardware_levels: bool
    polygraphy_switch: str | None = None  # the environment variable that makes Polygraphy use it


TENSORRT = Flavour(
    kind="tensorrt",
    title="TensorRT",
    module="tensorrt",
    packages=("tensorrt", "pycuda", "cuda-bindings"),
    needs_gpu_to_build=True,
    has_timing_cache=True,
    has_hardware_levels=True,
)
TENSORRT_RTX = Flavour(
    kind="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    packages=("tensorrt-rtx",),
    needs_gpu_to_build=False,
    has_timing_cache=False,  # it keeps the calls and makes them do nothing
    has_hardware_levels=False,  # it keeps the setter and warns that it is unsupported
    polygraphy_switch="POLYGRAPHY_USE_TENSORRT_RTX",
)
FLAVOURS = {flavour.kind: flavour for flavour in (TENSORRT, TENSORRT_RTX)}


def import_module(flavour: Flavour) -> ModuleType:
    """Import the package of a flavour.

    Raises:
        EngineNotInstalledError: it is missing, or broken.
    """
    try:
        trt = importlib.import_module(flavour.module)
    except Exception as error:  # a broken library may raise anything while it loads
        if isinstance(error, ModuleNotFoundError) and error.name == flavour.module:
            raise EngineNotInstalledError(
                f"{flavour.title} is not installed", f"run {pip_install(*flavour.packages)}"
            ) from None
        cause = " ".join(str(error).split()) or type(error).__name__
        raise EngineNotInstalledError(
            f"{flavour.title} is installed but cannot be imported ({cause})",
            "reinstall it and check that its libraries are found",
        ) from error
    if not hasattr(trt, "Builder") or not hasattr(trt, "OnnxParser"):
        raise EngineNotInstalledError(
            f"the package {flavour.module} is installed but has no builder (lean runtime?)",
            f"run {pip_install(*flavour.packages)}",
        )
    lacks = Features.of(trt).unsupported
    if lacks:
        raise EngineNotInstalledError(
            f"{flavour.title} {trt.__version__} {lacks}", "install TensorRT 8.6 or newer"
        )
    return trt


def gpu_targets(trt: ModuleType) -> tuple[str, ...] | None:
    """The compute capabilities ("sm80") that an imported library builds for; None where it does not tell, being for the GPU here."""
    listed = getattr(trt, "ComputeCapability", None)
    if listed is None:
        return None
    return tuple(name.lower() for name in listed.__members__ if name[2:].isdecimal())


@dataclass(frozen=True)
class Library:
    """An imported TensorRT, for one build or one open engine.

    Attributes:
        trt: the module.
        flavour: which of the two packages it is.
        features: what this release of it offers.
        messages: what it logged since this was made.
        logger: that collects them; it has to outlive every object that it is given to.
    """

    trt: ModuleType
    flavour: Flavour
    features: Features
    messages: Messages
    logger: Any

    @property
    def title(self) -> str:
        """What the package is called."""
        return self.flavour.title

    @property
    def version(self) -> str:
        """Its release."""
        return str(self.trt.__version__)

    def make(self, kind: str, *arguments: Any) -> Any:
        """Make one of its objects: "Builder", "Runtime", ...

        Raises:
            EngineError: it makes none. The bindings say no more than TypeError (pybind11's word for a factory that returned
                nullptr); why, mostly a driver older than the library, was logged before, by some releases as a warning.
        """
        try:
            return getattr(self.trt, kind)(*arguments)
        except TypeError as error:
            said = builder_problems(self.messages) or tuple(map(clean, self.messages.warnings[-1:]))
            raise EngineError(
                f"{self.title} {self.version} makes no {kind} here: {'; '.join(said[:3]) or 'no reason given'}; check that the "
                "NVIDIA driver is as new as this release asks for (nvidia-smi), or install an older release"
            ) from error


def open_library(flavour: Flavour) -> Library:
    """Import the package of a flavour and begin to collect what it logs.

    Raises:
        EngineNotInstalledError: it is missing, or broken.
    """
    trt, messages = import_module(flavour), Messages()
    return Library(trt, flavour, Features.of(trt), messages, make_logger(trt, messages))
