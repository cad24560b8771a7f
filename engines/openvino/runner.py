"""An open engine of OpenVINO: a model compiled for the CPU at hand, with a request for each call that runs at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cpu import onednn_limit
from ..errors import EngineError, EngineInputError, EngineLoadError
from ..imports import require_threads
from ..runner import CLOSED, Runner, TensorSpec
from .bfloat16 import capabilities, has_bfloat16, in_bfloat16
from .instructions import int8_saturates
from .library import SATURATES, one_line, settings
from .types import numpy_name

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

# OpenVINO's Python package makes its table of types at the first inference of a process: a thread that does so gives up Python's lock in
# the middle of it, and another that comes by takes that lock and waits for the table, for ever (seen with 2026.4.1). So the first is alone.
_FIRST = threading.Lock()
_RAN = threading.Event()


class OpenVinoRunner(Runner):
    """A compiled model with as many requests as it runs at a time; calls beyond them wait for one.

    Args:
        compiled: the model.
        at_once: requests.
    """

    def __init__(self, compiled: Any, at_once: int = 1) -> None:
        super().__init__(
            tuple(map(_tensor_spec, compiled.inputs)), tuple(map(_tensor_spec, compiled.outputs))
        )
        self.at_once = at_once
        idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(at_once):
            idle.put(compiled.create_infer_request())
        self._idle: queue.SimpleQueue[Any] | None = idle

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if _RAN.is_set():
            return self._run(feeds)
        with _FIRST:
            values = self._run(feeds)
            _RAN.set()
        return values

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        idle = self._idle
        if idle is None:  # closed since `infer` looked
            raise EngineInputError(CLOSED)
        request = idle.get()
        try:
            # inputs are read where they are; outputs are copied, as the next run writes over them
            values = request.infer(given, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while running: {one_line(error)}") from error
        finally:
            idle.put(request)
        return {spec.name: values[index] for index, spec in enumerate(self.outputs)}

    def _close(self) -> None:
        self._idle = None


def compile_engine(
    ov: ModuleType, engine_path: Path, threads: int | None, more: Mapping[Any, Any] | None = None
) -> Any:
    """Compile a built engine for the CPU at hand; `more` are settings besides `library.settings`.

    Raises:
        EngineLoadError: a file is missing or damaged, or the CPU has not what multiplies the types that it is to be inferred in.
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
                f"{_unset()}build it for this machine with --precision fp32{'' if int8_saturates(ov) else ' or int8'}"
            )
        if _in_8_bits(model) and int8_saturates(ov):
            raise EngineLoadError(
                f"{engine_path} is in int8, and {SATURATES}; {_unset()}"
                "build it for this machine with --engine onnxruntime, or with --precision fp32"
            )
        return core.compile_model(model, "CPU", {**settings(ov, threads, low=low), **(more or {})})
    except RuntimeError as error:
        raise EngineLoadError(
            f"{engine_path} is not an engine OpenVINO can load: {one_line(error)}"
        ) from error


def _unset() -> str:
    """What helps where the CPU has the instructions, and OpenVINO is kept from them."""
    limit = onednn_limit()
    return f"unset {limit.split('=')[0]}, or " if limit else ""


def _in_8_bits(model: Any) -> bool:
    return any(operator.get_type_name() == "FakeQuantize" for operator in model.get_ops())


def _tensor_spec(port: Any) -> TensorSpec:
    dtype = port.element_type
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(port.any_name, shape, numpy_name(dtype) or dtype.get_type_name())
