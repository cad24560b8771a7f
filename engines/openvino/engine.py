"""OpenVINO: Intel's runtime for CPUs, as an engine of its own.

Build: convert the ONNX graph to OpenVINO's format, `engine.xml` with its weights in `engine.bin` beside it. Run: compile it for
the CPU at hand, in the types of the graph.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import (
    BuildOptions,
    Engine,
    EngineInfo,
    EngineOrigin,
    Progress,
    Runner,
    Support,
    TensorSpec,
    refuse_gpu_options,
)
from engines.errors import EngineBuildError, EngineError, EngineLoadError, EngineNotInstalledError
from engines.files import atomic_path
from engines.graph_file import check_batch, input_specs, read_model
from engines.imports import import_runtime, require_threads
from engines.openvino.projections import split_projections

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

# its names of types by numpy's
_TYPES = {
    **{"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "boolean": "bool"},
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


class OpenVino(Engine):
    """Build: convert and save. Run: an inference request of the CPU plugin."""

    kind = "openvino"
    filename = "engine.xml"

    def probe(self) -> Support:
        try:
            version = _version(import_openvino())
        except EngineNotInstalledError as error:
            return Support(self.kind, False, None, False, False, error.reason, error.remedy)
        return Support(
            self.kind, True, version, True, True, f"OpenVINO {version} builds and runs on this CPU"
        )

    def check(self, options: BuildOptions) -> None:
        _require_cpu(options.device, EngineBuildError)
        refuse_gpu_options(options, "OpenVINO")

    def build(
        self,
        onnx_path: Path,
        engine_path: Path,
        options: BuildOptions,
        progress: Progress | None = None,
    ) -> EngineInfo:
        """Convert, compile once to see that it can be, and save; both files appear whole or not at all."""
        ov = import_openvino()
        self.check(options)
        started = time.perf_counter()
        report = progress or (lambda *_: None)
        report("reading ONNX", 0, 3)
        graph = read_model(onnx_path)
        check_batch(input_specs(graph), options.dynamic_batch, required=False)
        split = split_projections(graph)
        if not engine_path.parent.is_dir():
            raise EngineError(f"cannot write {engine_path}: folder {engine_path.parent} does not exist")
        try:
            core = ov.Core()
            model = core.read_model(io.BytesIO(graph.SerializeToString()))
            report("compiling for this CPU", 1, 3)
            core.compile_model(model, "CPU", settings(ov, options.threads))
        except RuntimeError as error:
            raise EngineBuildError(f"OpenVINO cannot build {onnx_path}: {_one_line(error)}") from error
        report("saving the engine", 2, 3)
        _save(ov, model, engine_path)
        operators = Counter(op.get_type_name() for op in model.get_ordered_ops())
        report("engine saved", 3, 3)
        return EngineInfo(
            kind=self.kind,
            version=_version(ov),
            filename=engine_path.name,
            size_bytes=engine_path.stat().st_size + engine_path.with_suffix(".bin").stat().st_size,
            build_seconds=time.perf_counter() - started,
            target="cpu",
            details={
                "operators": dict(sorted(operators.items())),
                "rewrites": {"products split for queries, keys and values": split},
            },
        )

    def load(
        self,
        engine_path: Path,
        *,
        threads: int | None = None,
        device: str | None = None,
        origin: EngineOrigin | None = None,
    ) -> OpenVinoRunner:
        """Open an engine; newer releases read the files of older ones, and say so where they do not."""
        ov = import_openvino()
        _require_cpu(device or "cpu", EngineLoadError)
        require_threads(threads)
        for path in (engine_path, engine_path.with_suffix(".bin")):
            if not path.is_file():
                raise EngineLoadError(f"{path}: no such engine file")
        try:
            compiled = ov.Core().compile_model(str(engine_path), "CPU", settings(ov, threads))
        except RuntimeError as error:
            raise EngineLoadError(
                f"{engine_path} is not an engine OpenVINO can load: {_one_line(error)}"
            ) from error
        return OpenVinoRunner(compiled)


class OpenVinoRunner(Runner):
    """A compiled model with one request."""

    def __init__(self, compiled: Any) -> None:
        super().__init__(
            tuple(map(_tensor_spec, compiled.inputs)), tuple(map(_tensor_spec, compiled.outputs))
        )
        self._request = compiled.create_infer_request()

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            # inputs are read where they are; outputs are copied, as the next run writes over them
            values = self._request.infer(given, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while running: {_one_line(error)}") from error
        return {spec.name: values[index] for index, spec in enumerate(self.outputs)}

    def _close(self) -> None:
        self._request = None


def import_openvino() -> ModuleType:
    """Import OpenVINO, or say how to install it."""
    return import_runtime("openvino", "OpenVINO")


def _version(ov: ModuleType) -> str:
    return ov.__version__.split("-")[0]


def settings(ov: ModuleType, threads: int | None) -> dict[Any, Any]:
    """Latency first, and float32 as it is written: on some CPUs it would round to bfloat16 by itself."""
    hint = ov.properties.hint
    settings = {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: ov.Type.f32,
    }
    if threads is not None:
        settings[ov.properties.inference_num_threads] = threads
    return settings


def _save(ov: ModuleType, model: Any, engine_path: Path) -> None:
    """Write both files beside their places and move them there, the weights first."""
    try:
        with atomic_path(engine_path) as temporary:
            ov.save_model(model, str(temporary), compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(engine_path.with_suffix(".bin"))
    except RuntimeError as error:  # a full disk, in its words
        raise EngineError(f"cannot write {engine_path}: {_one_line(error)}") from error


def _require_cpu(device: str, error: type[EngineError]) -> None:
    if device != "cpu":
        raise error(f"device {device} asked for, but OpenVINO engines run on the CPU here; use device cpu")


def _tensor_spec(port: Any) -> TensorSpec:
    dtype = port.element_type.get_type_name()
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, shape, _TYPES.get(dtype, dtype))


def _one_line(error: BaseException) -> str:
    """The last sentences of OpenVINO's message, which begins with where in its sources it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "While validating"))]
    return " ".join(told or lines or [type(error).__name__])[:400]
