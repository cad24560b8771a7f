"""The options that an engine is built with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineBuildError
from engines.imports import MOST_THREADS, allowed_threads

_GPU_OPTIONS = (
    "optimization_level",
    "timing_cache",
    "compute_capabilities",
    "workspace_bytes",
    "hardware_compatibility",
    "version_compatible",
    "strip_weights",
    "refit",
)
PROFILING = ("none", "names", "detailed")


@dataclass(frozen=True)
class BuildOptions:
    """How to build. What a runtime has no use for, it refuses rather than ignores.

    Attributes:
        dynamic_batch: (min, opt, max) batch sizes of a graph whose batch dimension is open.
        optimization_level: 0 (quick build) to 5 (fast engine); None is the runtime's default.
        timing_cache: file of kernel timings, read if present and written after the build.
        compute_capabilities: GPUs to build for ("sm80", ...); empty is the engine's default.
        workspace_bytes: limit on scratch memory of one layer.
        hardware_compatibility: "ampere_plus" or "same_compute_capability": the engine runs on other GPUs too (TensorRT).
        version_compatible: the engine runs on later releases too (TensorRT).
        strip_weights: the engine holds no weights; it is given those of the ONNX file when it is loaded.
        refit: weights of the engine can be replaced.
        profiling: what the engine tells of its layers: "none", "names" or "detailed".
        threads: CPU threads, at least 1; None leaves the choice to the runtime.
        device: "cpu", "cuda" or "cuda:N", for the runtimes that know both.

    Raises:
        EngineBuildError: a value is out of range.
    """

    dynamic_batch: tuple[int, int, int] | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    profiling: str = "detailed"
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dynamic_batch is not None:
            low, best, high = self.dynamic_batch
            if not 1 <= low <= best <= high:
                raise EngineBuildError(
                    f"dynamic batch must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {low}:{best}:{high}"
                )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise EngineBuildError(f"optimization level must be 0 to 5, got {self.optimization_level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EngineBuildError(
                f"workspace must be at least 1 byte, got {self.workspace_bytes}; "
                "leave it out for the engine's default"
            )
        if self.profiling not in PROFILING:
            raise EngineBuildError(f"profiling must be {' or '.join(PROFILING)}, got {self.profiling!r}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise EngineBuildError(
                f"threads must be {allowed_threads(self.threads)}, got {self.threads}; leave it out for the runtime's default"
            )


def refuse_gpu_options(options: BuildOptions, runtime: str) -> None:
    """Refuse what only the TensorRT family has a use for.

    Raises:
        EngineBuildError: names the first such option that was given.
    """
    for name in _GPU_OPTIONS:
        value = getattr(options, name)
        if value is not None and value is not False and value != ():  # 0 is a value
            raise EngineBuildError(
                f"{runtime} has no use for {name.replace('_', ' ')}; leave it out, or build with a TensorRT engine"
            )
