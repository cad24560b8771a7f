"""An open engine of ONNX Runtime: an inference session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, EngineLoadError
from engines.imports import require_threads
from engines.onnxruntime.library import one_line, open_graph, provider_of, running_options
from engines.runner import Runner, TensorSpec

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session, which any number of threads may call; `at_once` calls are what it was opened for."""

    def __init__(self, session: Any, at_once: int = 1) -> None:
        super().__init__(
            tuple(map(_tensor_spec, session.get_inputs())),
            tuple(map(_tensor_spec, session.get_outputs())),
        )
        self.at_once = at_once
        self._session = session
        self._output_names = [spec.name for spec in self.outputs]

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self._output_names, dict(feeds))
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise EngineError(f"ONNX Runtime failed while running: {one_line(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def _close(self) -> None:
        self._session = None


def open_session(ort: ModuleType, engine_path: Path, threads: int | None, device: str) -> Any:
    """Open an engine for running.

    Raises:
        EngineLoadError: the file is missing or damaged, or the device is not to be had.
    """
    provider = provider_of(ort, device, EngineLoadError)
    require_threads(threads)
    if not engine_path.is_file():
        raise EngineLoadError(f"{engine_path}: no such engine file")
    try:
        session = open_graph(ort, str(engine_path), running_options(ort, threads), provider)
    except Exception as error:  # as above
        raise EngineLoadError(
            f"{engine_path} is not an engine ONNX Runtime can load: {one_line(error)}"
        ) from error
    wanted = provider[0] if isinstance(provider, tuple) else provider
    if wanted not in session.get_providers():
        # ONNX Runtime falls back to the CPU with no more than a log line.
        raise EngineLoadError(
            f"device {device} asked for, but ONNX Runtime could not start {wanted}; "
            "check the CUDA and cuDNN libraries, or use device cpu"
        )
    return session


def _tensor_spec(node: Any) -> TensorSpec:
    """ONNX Runtime's "tensor(float)" in numpy's words; a symbolic dimension is a string or None."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, shape, dtype)
