"""An open engine of OpenVINO: a model compiled for the CPU at hand, with one request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, EngineLoadError
from engines.imports import require_threads
from engines.openvino.bfloat16 import capabilities, has_bfloat16, in_bfloat16
from engines.openvino.library import one_line, settings
from engines.openvino.types import numpy_name
from engines.runner import Runner, TensorSpec

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np


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
            raise EngineError(f"OpenVINO failed while running: {one_line(error)}") from error
        return {spec.name: values[index] for index, spec in enumerate(self.outputs)}

    def _close(self) -> None:
        self._request = None


def compile_engine(ov: ModuleType, engine_path: Path, threads: int | None) -> Any:
    """Compile a built engine for the CPU at hand.

    Raises:
        EngineLoadError: a file is missing or damaged, or the CPU has not the type that it is to be inferred in.
    """
    require_threads(threads)
    for path in (engine_path, engine_path.with_suffix(".bin")):
        if not path.is_file():
            raise EngineLoadError(f"{path}: no such engine file")
    try:
        core = ov.Core()
        model = core.read_model(str(engine_path))
        low = in_bfloat16(model)
        if low and not has_bfloat16(ov):
            raise EngineLoadError(
                f"{engine_path} computes in bf16, which this CPU has no kernels for (it has {capabilities(ov)}); "
                "build it for this machine with --precision fp32 or int8"
            )
        return core.compile_model(model, "CPU", settings(ov, threads, low=low))
    except RuntimeError as error:
        raise EngineLoadError(
            f"{engine_path} is not an engine OpenVINO can load: {one_line(error)}"
        ) from error


def _tensor_spec(port: Any) -> TensorSpec:
    dtype = port.element_type
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, shape, numpy_name(dtype) or dtype.get_type_name())
