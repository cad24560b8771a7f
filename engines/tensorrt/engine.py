"""TensorRT and TensorRT-RTX: one API in two packages, chosen by flavour.

TensorRT-RTX builds ahead of time with no GPU and no driver, and finishes compiling on the machine
that runs the engine. Full TensorRT times kernels while it builds, so it needs the GPU it builds
for. Features are asked for (`hasattr`); version numbers are never compared.
"""

from __future__ import annotations

import time
from pathlib import Path

from engines.base import BuildOptions, Engine, EngineInfo, EngineOrigin, Progress, Support
from engines.errors import (
    EngineError,
    EngineLoadError,
    EngineNotInstalledError,
    NoGpuError,
)
from engines.files import atomic_path
from engines.gpus import find_gpus
from engines.graph_file import check_batch, input_specs, output_specs, read_model, tensor_types
from engines.tensorrt import config, cuda, load
from engines.tensorrt.features import Features
from engines.tensorrt.kernels import EIGHT_BITS
from engines.tensorrt.layers import asked_types
from engines.tensorrt.library import FLAVOURS, import_module
from engines.tensorrt.messages import Messages, make_logger
from engines.tensorrt.runner import TensorRTRunner
from engines.tensorrt.runtime_cache import RuntimeCache, cache_path


class TensorRT(Engine):
    """Build a strongly typed TensorRT engine: every type is the ONNX graph's own."""

    filename = "engine.plan"

    def __init__(self, kind: str = "tensorrt") -> None:
        if kind not in FLAVOURS:
            raise EngineError(f"unknown TensorRT flavour {kind!r}; use {' or '.join(FLAVOURS)}")
        self.kind = kind
        self.flavour = FLAVOURS[kind]

    def probe(self) -> Support:
        title = self.flavour.title
        try:
            trt = import_module(self.flavour)
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        status = find_gpus()
        version = trt.__version__
        if status:
            try:
                cuda.import_driver()
            except EngineError as error:
                reason = f"{title} {version} builds here, and does not run: {error}"
                return Support(self.kind, True, version, True, False, reason, getattr(error, "remedy", None))
            reason = f"{title} {version} builds and runs here, on {status.gpus[0].name}"
            return Support(self.kind, True, version, True, True, reason)
        if self.flavour.needs_gpu_to_build:
            reason = f"{title} {version} needs an NVIDIA GPU to build: {status.reason}"
            remedy = "build on the machine that will run the engine, or use --engine tensorrt-rtx"
            return Support(self.kind, True, version, False, False, reason, remedy)
        reason = f"{title} {version} builds without a GPU; to run, it needs one: {status.reason}"
        remedy = "copy the bundle to a machine with an NVIDIA GPU, or use --engine onnxruntime"
        return Support(self.kind, True, version, True, False, reason, remedy)

    def check(self, options: BuildOptions) -> None:
        status = find_gpus()
        trt = import_module(self.flavour)
        if self.flavour.needs_gpu_to_build and not status:
            raise NoGpuError(
                f"building a {self.flavour.title} engine needs an NVIDIA GPU and driver; none found here "
                f"({status.reason}). Use --engine tensorrt-rtx, which builds without one"
            )
        config.targets(trt, self.flavour.title, options.compute_capabilities, bool(status))
        config.check_options(self.flavour, Features.of(trt), options, bool(status))

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
        self.check(options)
        title, status, trt = self.flavour.title, find_gpus(), import_module(self.flavour)
        from engines.tensorrt import build

        started = time.perf_counter()
        if progress:
            progress("reading ONNX", 0, 1)
        model = read_model(onnx_path)
        inputs, outputs, types = input_specs(model), output_specs(model), tensor_types(model)
        # a GPU's own inspector tells more; without one there is the builder's log alone
        low = not self.flavour.needs_gpu_to_build and types.intersection(EIGHT_BITS)
        asked = asked_types(model) if low else {}
        del model
        check_batch(inputs, options.dynamic_batch, required=True)
        targets = config.targets(trt, title, options.compute_capabilities, bool(status))
        with atomic_path(engine_path) as temporary:
            plan, details = build.build_plan(
                trt,
                self.flavour,
                onnx_path,
                inputs,
                outputs,
                types,
                asked,
                options,
                targets,
                progress,
            )
            temporary.write_bytes(plan)
        if targets and targets != ("current",):
            target = ",".join(targets)
        elif targets or self.flavour.needs_gpu_to_build:
            target = f"{status.gpus[0].compute_capability} ({status.gpus[0].name})"
        else:
            target = config.default_target(trt)
        return EngineInfo(
            kind=self.kind,
            version=trt.__version__,
            filename=engine_path.name,
            size_bytes=engine_path.stat().st_size,
            build_seconds=time.perf_counter() - started,
            target=target,
            details=details,
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
            threads: accepted for the sake of the other runtimes; no CPU thread takes part in a run.
            device: "cuda" or "cuda:N"; the first GPU by default.
            contexts: calls of `infer` that can run at once, each with memory of its own.
            cuda_graph: replay a shape seen before as one launch.

        An engine built without weights takes those of `model.onnx` beside it.
        """
        title = self.flavour.title
        if not engine_path.is_file():
            raise EngineLoadError(f"{engine_path}: no such engine file")
        number = cuda.ordinal(device)
        status = find_gpus()
        if not status:  # asked before TensorRT is touched, which hands back garbage without a device
            raise NoGpuError(
                f"running a {title} engine needs an NVIDIA GPU and driver; none found here "
                f"({status.reason}). Copy the bundle to a machine with one, "
                "or pass --engine onnxruntime to use this CPU"
            )
        trt = import_module(self.flavour)
        gpu = cuda.Gpu(number)
        if origin is not None:
            load.check_origin(title, trt.__version__, gpu, origin, Features.of(trt).engine_validity)
        features, plan, messages = Features.of(trt), engine_path.read_bytes(), Messages()
        logger = make_logger(trt, messages)
        with gpu.current():
            runtime, engine = load.deserialize(trt, title, features, plan, engine_path, gpu, logger, messages)
            try:
                if origin is not None and origin.details.get("strip_weights"):
                    weights = engine_path.with_name("model.onnx")
                    load.refit(trt, title, features, engine, weights, logger, messages)
                cache = (
                    RuntimeCache(cache_path(plan, gpu.name, trt.__version__))
                    if features.runtime_cache
                    else None
                )
                return TensorRTRunner(
                    trt,
                    title,
                    gpu,
                    engine,
                    messages,
                    keep=(runtime, logger),
                    cache=cache,
                    contexts=contexts,
                    cuda_graph=cuda_graph,
                )
            finally:
                del engine, runtime  # in this order: an engine must not outlive its runtime
