"""How a build is configured: targets, flags, profile, timing cache. Every option is mapped by what the library offers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from engines.build_options import BuildOptions
from engines.errors import EngineBuildError, NoGpuError
from engines.files import atomic_path
from engines.runner import TensorSpec
from engines.tensorrt.library import Library, gpu_targets
from engines.tensorrt.messages import Messages

_log = logging.getLogger(__name__)
OLDEST_DEFAULT = 80  # Ampere; Turing has to be named
_PROFILING = {"none": "NONE", "names": "LAYER_NAMES_ONLY", "detailed": "DETAILED"}


def targets(library: Library, asked: tuple[str, ...], gpu_present: bool) -> tuple[str, ...]:
    """Check compute capabilities such as "sm80" against the library's; "current" is this GPU.

    Raises:
        EngineBuildError: an unknown one, or a library that builds for this GPU alone.
        NoGpuError: "current" without a GPU.
    """
    if not asked:
        return ()
    title = library.title
    if not library.features.compute_capabilities:
        raise EngineBuildError(
            f"{title} builds for the GPU it runs on and cannot be given compute capabilities; "
            "leave them out, or use --engine tensorrt-rtx"
        )
    valid = [name.lower() for name in library.trt.ComputeCapability.__members__ if name != "NONE"]
    chosen = tuple(dict.fromkeys(name.lower() for name in asked))
    for name in chosen:
        if name not in valid:
            other = (
                "; sit-deploy build --engine tensorrt builds for it, on such a GPU"
                if _is_capability(name)
                else ""
            )
            raise EngineBuildError(
                f"unknown compute capability {name!r} for {title}; valid: {', '.join(valid)}{other}"
            )
    if "current" in chosen and len(chosen) > 1:
        raise EngineBuildError("compute capability current cannot be combined with others")
    if "current" in chosen and not gpu_present:
        raise NoGpuError(
            "compute capability current needs an NVIDIA GPU and driver; none found here. "
            "Name the target instead, for example sm89"
        )
    return chosen


def _is_capability(name: str) -> bool:
    return name.startswith("sm") and name[2:].isdecimal()


def default_target(library: Library) -> str:
    """What an engine built with no compute capability runs on: all from Ampere (sm80) on."""
    return ",".join(name for name in gpu_targets(library.trt) or () if int(name[2:]) >= OLDEST_DEFAULT)


def check_options(library: Library, options: BuildOptions, gpu_present: bool) -> None:
    """Refuse, before any work, what this library would refuse, ignore, or only warn of.

    Raises:
        EngineBuildError: an option that it does not know.
        NoGpuError: one that it knows only beside a GPU.
    """
    title, features = library.title, library.features
    level = options.hardware_compatibility
    if level is not None:
        if not library.flavour.has_hardware_levels:
            raise EngineBuildError(
                f"{title} has no hardware compatibility levels; name the GPUs with --target, or leave them out for all"
            )
        if level not in features.hardware_levels:
            known = ", ".join(features.hardware_levels) or "none"
            raise EngineBuildError(f"{title} here has no hardware compatibility {level!r} (levels: {known})")
    if options.version_compatible and not features.version_compatible:
        raise EngineBuildError(
            f"{title} here builds no version-compatible engines; leave --version-compatible out"
        )
    if options.strip_weights and not (features.strip_plan and features.onnx_refit):
        raise EngineBuildError(
            f"{title} here cannot leave weights out of an engine; leave --strip-weights out"
        )
    if options.refit and not features.refit:
        raise EngineBuildError(f"{title} here cannot refit engines; leave --refit out")
    if (options.strip_weights or options.refit) and not gpu_present:
        # TensorRT-RTX 1.7.1 without a driver: "MyelinCheckException: graph_jit.cpp ... CUDA_SUCCESS".
        raise NoGpuError(
            f"{title} builds engines that can be refitted only beside a GPU, and none is found here; "
            "leave --strip-weights and --refit out, or build where a GPU is"
        )


def configure(
    library: Library,
    builder: Any,
    network: Any,
    config: Any,
    options: BuildOptions,
    compute_capabilities: tuple[str, ...],
) -> None:
    """Set everything but the timing cache and the progress monitor.

    Raises:
        EngineBuildError: the library refuses a target, a level or the batch range.
    """
    trt = library.trt
    # TF32 rounds FP32 matmuls to 10 bits of mantissa, is on by default, and is not in the graph:
    # float32 there has to mean float32 here.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    flags = {
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        # weights that come back are the same, which lets the builder fold and fuse them as if it had kept them
        "REFIT_IDENTICAL": options.strip_weights and not options.refit,
        "REFIT": options.refit,
        # what TensorRT-RTX's documents ask for if a CUDA graph is to be captured of the engine
        "REQUIRE_USER_ALLOCATION": library.features.user_allocation,
    }
    for name, wanted in flags.items():
        if wanted:
            # releases before REFIT_IDENTICAL strip with REFIT alone
            config.set_flag(getattr(trt.BuilderFlag, name, trt.BuilderFlag.REFIT))
    if options.hardware_compatibility is not None:
        level = trt.HardwareCompatibilityLevel.__members__[options.hardware_compatibility.upper()]
        config.hardware_compatibility_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.__members__[_PROFILING[options.profiling]]
    if not library.features.strong_typing:
        # Its cuBLAS and cuDNN are other packages, which need not be there; its own kernels are. Later releases leave them out
        # by default.
        others = sum(
            1 << int(value) for name, value in trt.TacticSource.__members__.items() if _is_foreign(name)
        )
        config.set_tactic_sources(int(config.get_tactic_sources()) & ~others)
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
        for index, name in enumerate(compute_capabilities):
            capability = trt.ComputeCapability.__members__[name.upper()]
            if not config.set_compute_capability(capability, index):
                raise EngineBuildError(f"the builder refuses compute capability {name}")
    if options.dynamic_batch is not None:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, *((size, *rest) for size in options.dynamic_batch))
        if config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(
                f"the builder refuses the batch range {':'.join(map(str, options.dynamic_batch))}"
            )


def _is_foreign(source: str) -> bool:
    """Whether a tactic source is another library: CUBLAS, CUBLAS_LT or CUDNN."""
    return source.startswith(("CUBLAS", "CUDNN"))


def batch_profile(inputs: tuple[TensorSpec, ...], options: BuildOptions) -> dict[str, Any] | None:
    """The shapes of the optimisation profile as JSON values, None for a fixed batch."""
    if options.dynamic_batch is None:
        return None
    return {
        spec.name: {
            bound: [size, *spec.shape[1:]]
            for bound, size in zip(("min", "opt", "max"), options.dynamic_batch, strict=True)
        }
        for spec in inputs
    }


def attach_timing_cache(config: Any, path: Path, messages: Messages) -> dict[str, Any]:
    """Give the builder the cache in `path`; a missing, damaged or foreign one starts empty.

    Returns its state before the build, for `save_timing_cache`.
    """
    data = path.read_bytes() if path.is_file() else b""
    seen = len(messages.errors), len(messages.warnings)
    cache = config.create_timing_cache(data)
    usable = cache is not None and config.set_timing_cache(cache, False)
    # A damaged cache is replaced by an empty one, with nothing but a message to tell.
    complaints = [*messages.errors[seen[0] :], *messages.warnings[seen[1] :]]
    damaged = any("timing cache" in line.lower() for line in complaints)
    if data and (damaged or not usable):
        warning = f"timing cache {path} is damaged or from another GPU or version; starting anew"
        _log.warning(warning)
        messages.warnings.append(warning)
        data = b""
        cache = config.create_timing_cache(b"")
        usable = cache is not None and config.set_timing_cache(cache, False)
    if not usable:
        raise EngineBuildError(f"the builder takes no timing cache; build without {path}")
    return {"loaded": bool(data), "entries_before": _entries(cache)}


def save_timing_cache(config: Any, path: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Write the builder's cache to `path`, whole or not at all; returns `before` and the growth."""
    cache = config.get_timing_cache()
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(cache.serialize()))
    return {**before, "entries_after": _entries(cache)}


def _entries(cache: Any) -> int | None:
    return len(cache.queryKeys()) if hasattr(cache, "queryKeys") else None
