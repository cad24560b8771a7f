"""From an ONNX file to a serialized TensorRT plan: parse, configure, build, cancel."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.base import BuildOptions, Progress, TensorSpec
from engines.errors import EngineBuildError, NoGpuError
from engines.files import atomic_path
from engines.tensorrt_messages import Messages, builder_problems, facts, make_logger, parser_problems

if TYPE_CHECKING:
    from engines.tensorrt_flavours import Flavour

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_SHOWN_PROBLEMS = 3
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def targets(trt: ModuleType, title: str, asked: tuple[str, ...], gpu_present: bool) -> tuple[str, ...]:
    """Check compute capabilities such as "sm80" against the library's; "current" is this GPU.

    Raises:
        EngineBuildError: an unknown one, or a library that cannot be told.
        NoGpuError: "current" without a GPU.
    """
    if not asked:
        return ()
    if not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        raise EngineBuildError(
            f"{title} builds for the GPU it runs on and cannot be given compute capabilities; "
            "leave them out, or use --engine tensorrt-rtx"
        )
    valid = [name.lower() for name in trt.ComputeCapability.__members__ if name != "NONE"]
    chosen = tuple(dict.fromkeys(name.lower() for name in asked))
    for name in chosen:
        if name not in valid:
            raise EngineBuildError(
                f"unknown compute capability {name!r} for {title}; valid: {', '.join(valid)}"
            )
    if "current" in chosen and len(chosen) > 1:
        raise EngineBuildError("compute capability current cannot be combined with others")
    if "current" in chosen and not gpu_present:
        raise NoGpuError(
            "compute capability current needs an NVIDIA GPU and driver; none found here. "
            "Name the target instead, for example sm89"
        )
    return chosen


def default_target(trt: ModuleType) -> str:
    """What an engine built with no compute capability runs on: all from Ampere (sm80) on."""
    names = [name.lower() for name in trt.ComputeCapability.__members__]
    return ",".join(name for name in names if name[2:].isdecimal() and int(name[2:]) >= 80)


def build_plan(
    trt: ModuleType,
    flavour: Flavour,
    onnx_path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    options: BuildOptions,
    compute_capabilities: tuple[str, ...],
    progress: Progress | None,
) -> tuple[memoryview, dict[str, Any]]:
    """Build and return the serialized plan and what is worth knowing of it (JSON values).

    Raises:
        EngineBuildError: the parser or the builder refuses the graph, or an option.
        KeyboardInterrupt: Ctrl-C; the builder has stopped by then.
    """
    title = flavour.title
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    if options.threads is not None:
        builder.max_threads = options.threads
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        _refuse(f"{title} cannot read {onnx_path}", parser_problems(parser, title))
    _check_types(trt, title, network, inputs, outputs)

    config = builder.create_builder_config()
    _configure(trt, builder, network, config, options, compute_capabilities)
    cache = None
    if options.timing_cache is not None and flavour.has_timing_cache:
        cache = attach_timing_cache(config, options.timing_cache, messages)
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    messages.clear_errors()  # a parser that succeeds may still have logged some
    plan = _build(builder, network, config, monitor, progress)
    if plan is None:
        _refuse(f"{title} cannot build {onnx_path}", builder_problems(messages))

    details: dict[str, Any] = {
        "layers": network.num_layers,
        "layer_output_types": _layer_types(network),
        "profile": _profile(inputs, options),
        "flags": [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)],
        "compute_capabilities": list(compute_capabilities) or "default",
        "optimization_level": config.builder_optimization_level,
        "warnings": messages.warnings,
        **facts(messages.notes),
    }
    if options.timing_cache is not None:
        details["timing_cache"] = (
            f"not used: {title} does not time kernels while it builds"
            if cache is None
            else save_timing_cache(config, options.timing_cache, cache)
        )
    return memoryview(plan), details


def attach_timing_cache(config: Any, path: Path, messages: Messages) -> dict[str, Any]:
    """Give the builder the cache in `path`; a missing, damaged or foreign one starts empty.

    Returns what was found, for `save_timing_cache`.
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


def save_timing_cache(config: Any, path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write the builder's cache to `path`, whole or not at all; returns `found` and the growth."""
    cache = config.get_timing_cache()
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(cache.serialize()))
    return {**found, "entries_after": _entries(cache)}


def _entries(cache: Any) -> int | None:
    return len(cache.queryKeys()) if hasattr(cache, "queryKeys") else None


def _network_flags(trt: ModuleType) -> int:
    """Strongly typed, where that has to be said; later libraries know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _check_types(
    trt: ModuleType,
    title: str,
    network: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Inputs and outputs keep the ONNX graph's types, and the network is strongly typed."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is not None and not network.get_flag(flag):
        raise EngineBuildError(f"{title} made a weakly typed network; its types would not be ours")
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    got = {tensor.name: _dtype(tensor.dtype) for tensor in found}
    for spec in (*inputs, *outputs):
        if got.get(spec.name) != spec.dtype:
            raise EngineBuildError(
                f"{title} took {spec.name} for {got.get(spec.name, 'nothing')}, "
                f"the ONNX graph says {spec.dtype}"
            )


def _configure(
    trt: ModuleType,
    builder: Any,
    network: Any,
    config: Any,
    options: BuildOptions,
    compute_capabilities: tuple[str, ...],
) -> None:
    # TF32 rounds FP32 matmuls to 10 bits of mantissa, is on by default, and is not in the graph:
    # float32 there has to mean float32 here.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
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


def _build(builder: Any, network: Any, config: Any, monitor: Any, progress: Progress | None) -> Any | None:
    """Build in a thread, so that Ctrl-C reaches Python here and `progress` runs in our thread.

    An exception raised inside one of the builder's callbacks would have to pass through C++.
    """
    result: list[Any] = []
    failure: list[BaseException] = []
    # Not Thread.join: interrupted by Ctrl-C, Python 3.11's marks a running thread as ended.
    ended = threading.Event()

    def work() -> None:
        try:
            result.append(builder.build_serialized_network(network, config))
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="tensorrt-build")
    reported = None
    try:
        thread.start()
        while not ended.wait(_POLL_SECONDS):
            latest = monitor.latest
            if progress and latest is not None and latest != reported:
                reported = latest
                progress(*latest)
        if progress and monitor.latest not in (None, reported):
            progress(*monitor.latest)  # a quick build ends between two looks
    except BaseException:
        monitor.cancelled = True
        while thread.is_alive() and not ended.is_set():
            # The builder's objects must outlive its thread, however often Ctrl-C is pressed.
            with suppress(KeyboardInterrupt):
                ended.wait()
        raise
    if failure:
        raise failure[0]
    return result[0]


def _refuse(what: str, problems: tuple[str, ...]) -> None:
    shown = "; ".join(problems[:_SHOWN_PROBLEMS]) or "no reason given"
    more = len(problems) - _SHOWN_PROBLEMS
    raise EngineBuildError(f"{what}: {shown}" + (f"; and {more} more" if more > 0 else ""), problems)


def _profile(inputs: tuple[TensorSpec, ...], options: BuildOptions) -> dict[str, Any] | None:
    if options.dynamic_batch is None:
        return None
    return {
        spec.name: {
            bound: [size, *spec.shape[1:]]
            for bound, size in zip(("min", "opt", "max"), options.dynamic_batch, strict=True)
        }
        for spec in inputs
    }


def _layer_types(network: Any) -> dict[str, int]:
    """How many layers put out each type: a look at where the graph is low precision."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter(_dtype(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)
    return dict(sorted(counts.items()))


def _dtype(dtype: Any) -> str:
    return _DTYPES.get(dtype.name, dtype.name.lower())


def _make_monitor(trt: ModuleType) -> Any:
    """A progress monitor: `latest` is (phase, done, total), `cancelled` stops the build.

    The builder calls from threads of its own; both attributes are set in one assignment.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.latest: tuple[str, int, int] | None = None
            self.cancelled = False
            self._totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._totals[phase] = steps
            self.latest = (phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            self.latest = (phase, step + 1, self._totals[phase])
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            self._totals.pop(phase, None)

    return Monitor()
