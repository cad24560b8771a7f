"""TensorRT and TensorRT-RTX: one API in two packages, an engine each.

TensorRT-RTX builds ahead of time with no GPU and no driver, and finishes compiling on the machine
that runs the engine. Full TensorRT times kernels while it builds, so it needs the GPU it builds
for. Features are asked for (`hasattr`); version numbers are never compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engines.base import Engine, EngineInfo, EngineOrigin, LayerTime, Progress, Support
from engines.build_options import BuildOptions
from engines.errors import (
    EngineBuildError,
    EngineError,
    EngineLoadError,
    EngineNotInstalledError,
    NoGpuError,
)
from engines.files import atomic_path
from engines.gpus import Gpu, find_gpus
from engines.graph_file import GraphNodes, check_batch
from engines.install import pip_install
from engines.tensorrt import config, cuda, load
from engines.tensorrt.library import (
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    gpu_targets,
    import_module,
    open_library,
)
from engines.tensorrt.runtime_cache import RuntimeCache, cache_path

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from engines.tensorrt.runner import TensorRTRunner

OLDEST_FP8 = 89  # Ada
_log = logging.getLogger(__name__)


class TensorRT(Engine):
    """Build a strongly typed TensorRT engine: every type is the ONNX graph's own."""

    flavour: ClassVar[Flavour] = TENSORRT
    kind = TENSORRT.kind
    title = TENSORRT.title
    package = "tensorrt"
    filename = "engine.plan"
    on_cpu = False
    builds_anywhere = not TENSORRT.needs_gpu_to_build
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8")
    precision_beside_8_bits = "fp16"
    attention_since = "TensorRT 10.14"
    attention_in_one_kernel = True
    tells_kernels = True
    reports_types = True
    reports_tensors = True

    def probe(self) -> Support:
        title = self.title
        try:
            trt = import_module(self.flavour)
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        status = find_gpus()
        version = trt.__version__
        if status:
            foreign = self._foreign(trt, status.gpus)
            if foreign:
                remedy = (
                    f"use --engine tensorrt for this GPU ({pip_install(*TENSORRT.packages)}), or name the GPU to build for: "
                    f"--engine {self.kind} --target sm89"
                )
                return Support(self.kind, True, version, True, False, foreign, remedy, foreign_gpu=True)
            try:
                cuda.import_driver()
            except EngineError as error:
                reason = f"{title} {version} builds here, and does not run: {error}"
                return Support(self.kind, True, version, True, False, reason, getattr(error, "remedy", None))
            (first, *_) = [gpu for gpu in status.gpus if _serves(trt, gpu.compute_capability)]
            reason = f"{title} {version} builds and runs here, on {first.name}"
            if gpu_targets(trt) and int(first.compute_capability[2:]) < config.OLDEST_DEFAULT:
                reason += f", with --target {first.compute_capability}: engines leave it out by default"
            return Support(self.kind, True, version, True, True, reason)
        if self.flavour.needs_gpu_to_build:
            reason = f"{title} {version} needs an NVIDIA GPU to build: {status.reason}"
            remedy = "build on the machine that will run the engine, or use --engine tensorrt-rtx"
            return Support(self.kind, True, version, False, False, reason, remedy)
        reason = f"{title} {version} builds without a GPU; to run, it needs one: {status.reason}"
        remedy = "copy the bundle to a machine with an NVIDIA GPU, or use --engine onnxruntime"
        return Support(self.kind, True, version, True, False, reason, remedy)

    def serves(self, capability: str) -> bool:
        try:
            return _serves(import_module(self.flavour), capability)
        except EngineNotInstalledError:
            return False

    def _foreign(self, trt: ModuleType, gpus: Sequence[Gpu]) -> str | None:
        """Why engines of an imported library run on none of some GPUs; None where they do."""
        if any(_serves(trt, gpu.compute_capability) for gpu in gpus):
            return None
        named = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus)
        return f"{self.title} {trt.__version__} does not run on {named}; it is for {', '.join(gpu_targets(trt) or ())}"

    def check(self, options: BuildOptions) -> None:
        status = find_gpus()
        library = open_library(self.flavour)
        if self.flavour.needs_gpu_to_build and not status:
            raise NoGpuError(
                f"building a {self.title} engine needs an NVIDIA GPU and driver; none found here "
                f"({status.reason}). Use --engine tensorrt-rtx, which builds without one"
            )
        targets = config.targets(library, options.compute_capabilities, bool(status))
        foreign = self._foreign(library.trt, status.gpus[:1]) if "current" in targets else None
        if foreign:  # the library has the last word
            _log.warning("%s; --engine tensorrt is for this GPU", foreign)
        config.check_options(library, options, bool(status))

    def _reads_attention(self) -> bool:
        return open_library(self.flavour).features.attention

    def targets_with(self, precision: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        if precision != "fp8":
            return asked
        capabilities = list(asked)
        if not asked or "current" in asked:  # the GPU of this machine
            capabilities = [c for c in asked if c != "current"]
            capabilities += [gpu.compute_capability for gpu in find_gpus().gpus]
        for capability in capabilities:
            number = capability.removeprefix("sm")
            if number.isdecimal() and int(number[:9]) < OLDEST_FP8:
                raise EngineBuildError(
                    f"{capability} has no FP8: it came with sm{OLDEST_FP8}; pass --precision int8 or a newer --target"
                )
        return asked

    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        """Build `engine_path`.

        With no compute capabilities given, TensorRT-RTX makes one engine for every GPU it
        supports from Ampere on; Turing (sm75) has to be named, best on its own. TensorRT builds
        for the first GPU here.

        Ctrl-C cancels at the builder's next step. TensorRT-RTX spends most of a build in a single
        step, so that can take seconds.
        """
        from engines.tensorrt.build import build_plan, read_graph

        self.check(options)
        status, library = find_gpus(), open_library(self.flavour)
        started = time.perf_counter()
        if progress:
            progress("reading ONNX", 0, 1)
        graph = read_graph(onnx_path, self.flavour)
        check_batch(graph.inputs, options.dynamic_batch, required=True)
        targets = config.targets(library, options.compute_capabilities, bool(status))
        with atomic_path(engine_path) as temporary:
            plan, details, kernels = build_plan(library, graph, options, targets, progress)
            temporary.write_bytes(plan)
        if targets and targets != ("current",):
            target = ",".join(targets)
        elif targets or self.flavour.needs_gpu_to_build:
            target = f"{status.gpus[0].compute_capability} ({status.gpus[0].name})"
        else:
            target = config.default_target(library)
        return EngineInfo(
            kind=self.kind,
            version=library.version,
            filename=engine_path.name,
            size_bytes=engine_path.stat().st_size,
            build_seconds=time.perf_counter() - started,
            target=target,
            details=details,
            kernels=tuple(kernel.to_dict() for kernel in kernels),
        )

    def load(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
        contexts: int = 1,
        cuda_graph: bool = True,
    ) -> TensorRTRunner:
        """Open an engine on a GPU.

        Args:
            engine_path: the plan.
            threads: accepted for the sake of the other runtimes; no CPU thread takes part in a run.
            device: "cuda" or "cuda:N"; the first GPU by default.
            origin: how it was built.
            contexts: calls of `infer` that can run at once, each with memory of its own.
            cuda_graph: replay a shape seen before as one launch.

        An engine built without weights takes those of `model.onnx` beside it.
        """
        from engines.tensorrt.runner import TensorRTRunner

        if not engine_path.is_file():
            raise EngineLoadError(f"{engine_path}: no such engine file")
        number = cuda.ordinal(device)
        status = find_gpus()
        if not status:  # asked before TensorRT is touched, which hands back garbage without a device
            raise NoGpuError(
                f"running a {self.title} engine needs an NVIDIA GPU and driver; none found here "
                f"({status.reason}). Copy the bundle to a machine with one, "
                "or pass --engine onnxruntime to use this CPU"
            )
        library = open_library(self.flavour)
        gpu = cuda.CudaDevice(number)
        if origin is not None:
            load.check_origin(library, gpu, origin)
        plan, cache = engine_path.read_bytes(), None
        with gpu.current():
            runtime, engine = load.deserialize(library, plan, engine_path, gpu)
            try:
                if origin is not None and origin.details.get("strip_weights"):
                    load.refit(library, engine, engine_path.with_name("model.onnx"))
                if library.features.runtime_cache:
                    cache = RuntimeCache(cache_path(plan, gpu.name, library.version))
                return TensorRTRunner(
                    library, gpu, engine, runtime, cache=cache, contexts=contexts, cuda_graph=cuda_graph
                )
            finally:
                del engine, runtime  # in this order: an engine must not outlive its runtime

    def layer_times(
        self,
        engine_path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        runs: int = 20,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> tuple[LayerTime, ...]:
        # opened for this alone: a context that was profiled stays slow
        with self.load(engine_path, device=device, origin=origin) as runner:
            return runner.layer_times(feeds, runs)

    def inspect_kernels(
        self,
        engine_path: Path,
        graph: Path | GraphNodes,
        feeds: Mapping[str, np.ndarray],
        *,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
        from engines.kernels import INSPECTOR, kernel_details
        from engines.tensorrt.inspector import inspected_kernels

        with self.load(engine_path, device=device, origin=origin) as runner:
            runner.infer(feeds)  # of an open batch the context knows shapes and types only then
            told = runner.inspect_layers()
        nodes = GraphNodes.of(graph)
        kernels = inspected_kernels(told, nodes.products)
        details = kernel_details(kernels, nodes.types, nodes.attention, INSPECTOR)
        return tuple(kernel.to_dict() for kernel in kernels), details

    def tensor_outputs(
        self, onnx_path: Path, feeds: Mapping[str, np.ndarray], tensors: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Build an engine here that gives every tensor, and run it."""
        from engines.tensorrt.tensors import tensor_outputs

        status = find_gpus()
        if not status:
            raise NoGpuError(
                f"comparing layers runs them on an NVIDIA GPU; none found here ({status.reason}). Leave --debug out, or "
                "copy the bundle to a machine with one"
            )
        outputs = tensor_outputs(self.flavour, onnx_path, feeds)
        return outputs if tensors is None else {name: outputs[name] for name in tensors}


class TensorRTRTX(TensorRT):
    """The same with TensorRT-RTX."""

    flavour = TENSORRT_RTX
    kind = TENSORRT_RTX.kind
    title = TENSORRT_RTX.title
    package = "tensorrt-rtx"
    builds_anywhere = not TENSORRT_RTX.needs_gpu_to_build
    one_scale_where_split = True
    attention_since = "TensorRT-RTX 1.7.1"
    caveat = (
        "documents INT8 for weights alone: what a build in int8 multiplies in 8 bits, its notes and `inspect` say, "
        "as the builder logs it; nothing of it has run on a GPU yet"
    )
    _FP8_TARGETS = ("sm89", "sm120", "sm121")  # of what it builds for

    def targets_with(self, precision: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        if precision == "fp8" and not asked:
            return self._FP8_TARGETS
        return super().targets_with(precision, asked)

    def attends_unscaled(self, precision: str, targets: tuple[str, ...]) -> bool:
        # in FP8 its builder makes three products of one then for sm120 and sm121, and not for sm89 (1.7.1)
        return precision == "int8" or (precision == "fp8" and set(targets) == {"sm89"})


def _serves(trt: ModuleType, capability: str) -> bool:
    """Whether engines of an imported library run on a GPU; one that builds for the GPU that it finds is taken at its word."""
    listed = gpu_targets(trt)
    return listed is None or capability in listed
