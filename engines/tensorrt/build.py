"""From an ONNX file to a serialized TensorRT plan: parse, configure, build, cancel."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import Progress
from engines.build_options import BuildOptions
from engines.errors import EngineBuildError
from engines.graph_file import (
    attention_nodes,
    input_specs,
    output_specs,
    product_nodes,
    product_types,
    read_model,
    tensor_types,
)
from engines.kernels import EIGHT_BIT_TYPES, SIXTEEN_BIT_TYPES, Kernel, kernel_details
from engines.runner import TensorSpec
from engines.tensorrt.config import attach_timing_cache, batch_profile, configure, save_timing_cache
from engines.tensorrt.kernels import read_kernels
from engines.tensorrt.library import Flavour, Library
from engines.tensorrt.messages import builder_problems, facts, parser_problems
from engines.tensorrt.types import constrain, network_flags, numpy_type, require_types

_POLL_SECONDS = 0.05
_SHOWN_PROBLEMS = 3
_LOW = (*EIGHT_BIT_TYPES, *SIXTEEN_BIT_TYPES)


@dataclass(frozen=True)
class OnnxGraph:
    """What has to be known of an ONNX file beside what the library's parser reads.

    Attributes:
        path: the file.
        inputs, outputs: of the graph.
        types: of all its tensors, by numpy's names.
        products: the type of each product by ONNX node, to be held to the engine's kernels.
        multiplies: all its products.
        attention: its Softmax nodes that are attention's, likewise.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    types: set[str]
    products: dict[str, str]
    multiplies: tuple[str, ...]
    attention: tuple[str, ...]


def read_graph(path: Path, flavour: Flavour) -> OnnxGraph:
    """Read what `build_plan` needs to know of an ONNX file.

    Raises:
        EngineBuildError: there is no such file, or it is not a readable ONNX model.
    """
    model = read_model(path)
    types = tensor_types(model)
    # a GPU's own inspector tells more; without one there is the builder's log alone
    asked = not flavour.needs_gpu_to_build
    return OnnxGraph(
        path,
        input_specs(model),
        output_specs(model),
        types,
        products=product_types(model) if asked and types.intersection(_LOW) else {},
        multiplies=product_nodes(model) if asked else (),
        attention=attention_nodes(model) if asked else (),
    )


def build_plan(
    library: Library,
    graph: OnnxGraph,
    options: BuildOptions,
    targets: tuple[str, ...],
    progress: Progress | None,
) -> tuple[memoryview, dict[str, Any], tuple[Kernel, ...]]:
    """Build and return the serialized plan, what is worth knowing of it (JSON values), and its kernels where the builder tells.

    Args:
        library: that builds.
        graph: what is built.
        options: of the build.
        targets: compute capabilities to build for; empty is the library's default.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        EngineBuildError: the parser or the builder refuses the graph, or an option.
        KeyboardInterrupt: Ctrl-C; the builder has stopped by then.
    """
    trt, title, features, messages = library.trt, library.title, library.features, library.messages
    require_types(library, graph.types)
    builder = library.make("Builder", library.logger)
    if options.threads is not None:
        builder.max_threads = options.threads
    network = builder.create_network(network_flags(library))
    parser = library.make("OnnxParser", network, library.logger)
    if not parser.parse_from_file(str(graph.path)):
        _refuse(f"{title} cannot read {graph.path}", parser_problems(parser, title))
    _check_types(library, network, graph)

    config = builder.create_builder_config()
    configure(library, builder, network, config, options, targets)
    constrained = None if features.strong_typing else constrain(library, network, config, graph.types)
    cache = None
    if options.timing_cache is not None and library.flavour.has_timing_cache:
        cache = attach_timing_cache(config, options.timing_cache, messages)
    monitor = _make_monitor(library)
    if features.progress_monitor:
        config.progress_monitor = monitor
    messages.clear_errors()  # a parser that succeeds may still have logged some
    plan = _build(builder, network, config, monitor, progress)
    if plan is None:
        _refuse(f"{title} cannot build {graph.path}", builder_problems(messages))

    kernels = (
        read_kernels(messages.kernels, graph.multiplies) if not library.flavour.needs_gpu_to_build else ()
    )
    details: dict[str, Any] = {
        "layers": network.num_layers,
        "layer_output_types": _layer_types(network),
        "typing": "strong" if features.strong_typing else f"weak, {constrained} layers told their types",
        "profile": batch_profile(graph.inputs, options),
        "flags": [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)],
        "compute_capabilities": list(targets) or "default",
        "optimization_level": config.builder_optimization_level,
        "hardware_compatibility": options.hardware_compatibility,
        "version_compatible": options.version_compatible,
        "strip_weights": options.strip_weights,
        "refit": options.refit,
        "profiling": options.profiling,
        "workspace_bytes": options.workspace_bytes,
        **kernel_details(kernels, graph.products, graph.attention),
        "warnings": messages.warnings,
        **facts(messages.notes),
    }
    if options.timing_cache is not None:
        details["timing_cache"] = (
            f"not used: {title} does not time kernels while it builds"
            if cache is None
            else save_timing_cache(config, options.timing_cache, cache)
        )
    return memoryview(plan), details, kernels


def _check_types(library: Library, network: Any, graph: OnnxGraph) -> None:
    """Inputs and outputs keep the ONNX graph's types, and the network is strongly typed where it can be."""
    trt, title, features = library.trt, library.title, library.features
    if features.typing_flag and not network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
        raise EngineBuildError(f"{title} made a weakly typed network; its types would not be ours")
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    got = {tensor.name: numpy_type(tensor.dtype) for tensor in found}
    for spec in (*graph.inputs, *graph.outputs):
        if got.get(spec.name) != spec.dtype:
            raise EngineBuildError(
                f"{title} took {spec.name} for {got.get(spec.name, 'nothing')}, "
                f"the ONNX graph says {spec.dtype}"
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


def _layer_types(network: Any) -> dict[str, int]:
    """How many layers put out each type: a look at where the graph is low precision."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter(numpy_type(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)
    return dict(sorted(counts.items()))


class _Silent:
    """The monitor of a library that has none: nothing is told, and nothing can be cancelled."""

    latest: tuple[str, int, int] | None = None
    cancelled = False


def _make_monitor(library: Library) -> Any:
    """A progress monitor: `latest` is (phase, done, total), `cancelled` stops the build.

    The builder calls from threads of its own; both attributes are set in one assignment.
    """
    trt = library.trt
    if not library.features.progress_monitor:
        return _Silent()

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
