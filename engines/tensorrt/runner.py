"""An open TensorRT engine: contexts that take turns, each with memory, stream and CUDA graph of its own.

The order of calls is TensorRT's: shapes and addresses of every tensor first, then `execute_async_v3`, then the stream is
waited for before an output is read (NVIDIA TensorRT developer guide, "Performing inference" and "CUDA graphs").
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.base import Runner, TensorSpec, format_shape
from engines.errors import EngineInputError, EngineLoadError, EngineRunError
from engines.tensorrt import cuda
from engines.tensorrt.context import Lane
from engines.tensorrt.types import numpy_type

if TYPE_CHECKING:
    import numpy as np

    from engines.tensorrt.messages import Messages
    from engines.tensorrt.runtime_cache import RuntimeCache


class TensorRTRunner(Runner):
    """A deserialised engine.

    `infer` may be called from several threads: each call takes a free context, and waits where none is.

    Args:
        trt, title: the library and what it is called.
        gpu: the device, whose context is current while this is called.
        engine: the `ICudaEngine`; owned from here on. keep: what has to outlive it (the runtime and its logger).
        cache: kernels compiled at run time, kept for the next start, where the library has such a cache.
        contexts: how many calls can run at once.
        cuda_graph: replay the launches of a shape seen before as one.

    Attributes:
        last_gpu_seconds: time on the GPU of the call of `infer` that ended last, transfers left out; None before any.
        notes: what did not go as asked, such as a CUDA graph that could not be captured.
    """

    def __init__(
        self,
        trt: ModuleType,
        title: str,
        gpu: cuda.Gpu,
        engine: Any,
        messages: Messages,
        *,
        keep: tuple[Any, ...] = (),
        cache: RuntimeCache | None = None,
        contexts: int = 1,
        cuda_graph: bool = True,
    ) -> None:
        if contexts < 1:
            raise EngineLoadError(f"an engine needs at least one context, got {contexts}")
        inputs, outputs, self.ranges = _tensors(trt, engine, title)
        super().__init__(inputs, outputs)
        self.title = title
        self.gpu = gpu
        self.last_gpu_seconds: float | None = None
        self.notes: list[str] = []
        self.trt = trt
        self._engine = engine
        self._keep = keep
        self.messages = messages
        self._cache = cache
        self._broken: str | None = None
        self._graphs = cuda.import_graphs() if cuda_graph else None
        if cuda_graph and self._graphs is None:
            self.notes.append(
                "no CUDA graphs: cuda-bindings is not installed; run `pip install cuda-bindings`"
            )
        self._lanes: list[Lane] = []
        self._free: queue.LifoQueue[Lane | None] = queue.LifoQueue()  # None: closed
        with ExitStack() as undo:
            undo.callback(self._release)
            for _ in range(contexts):
                self._add_lane(contexts)
            undo.pop_all()

    def _add_lane(self, contexts: int) -> None:
        seen = len(self.messages.errors)
        context = self._make_context()
        if context is None:
            said = "; ".join(self.messages.errors[seen:]) or "no reason given"
            if "memory" in said.lower():
                raise self.gpu.out_of_memory(
                    "an execution context", _activation_bytes(self._engine), _SMALLER
                )
            raise EngineLoadError(f"{self.title} makes no execution context: {said}")
        lane = Lane(self, context, self._graphs)
        self._lanes.append(lane)  # before it allocates: `_release` then frees what it has
        lane.allocate(_remedy(contexts, self.ranges))
        self._free.put(lane)

    def _make_context(self) -> Any:
        if self._cache is None:
            return self._engine.create_execution_context()
        config = self._cache.configure(self._engine)
        return self._engine.create_execution_context(config)

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._check_ranges(feeds)
        with self._lane() as lane:
            outputs, self.last_gpu_seconds = lane.run(feeds)
        return outputs

    def infer_device(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run on PyTorch tensors that are on this GPU, without a copy of either side; outputs are new tensors there.

        The work joins PyTorch's current stream as any operation of PyTorch does: nothing is waited for, and what is
        enqueued there next sees the outputs.

        Raises:
            EngineInputError: a tensor of another device, dtype or shape, or one that is not contiguous.
        """
        import torch

        if self._closed:
            raise EngineInputError("this engine is closed; load it again to run it")
        self._check_names(feeds)
        for spec in self.inputs:
            _check_tensor(spec, feeds[spec.name], self.gpu.number)
        self._check_ranges(feeds)
        device = torch.device("cuda", self.gpu.number)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self.inputs}
        batch = next(iter(shapes.values()))[0]
        outputs = {
            spec.name: torch.empty(
                tuple(batch if size is None else size for size in spec.shape),
                dtype=getattr(torch, spec.dtype),
                device=device,
            )
            for spec in self.outputs
        }
        pointers = {name: tensor.data_ptr() for name, tensor in (*feeds.items(), *outputs.items())}
        with self._lane() as lane:
            lane.run_on_device(shapes, pointers)
        return outputs

    def inspect_layers(self) -> str:
        """What TensorRT's engine inspector tells of the layers, as JSON text."""
        with self._lane() as lane:
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = lane.context
            return inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)

    def profile_layers(self, feeds: Mapping[str, np.ndarray], profiler: Any, runs: int = 10) -> None:
        """Run some times with an `IProfiler`, which collects the time of every layer; slower than `infer`."""
        self._check_ranges(feeds)
        with self._lane() as lane:
            lane.profile(feeds, profiler, runs)

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        if self._broken:
            raise EngineRunError(self._broken)
        lane = self._free.get()
        if lane is None:
            self._free.put(None)  # for the next that waits
            raise EngineInputError(
                "this engine was closed while a call waited for it; load it again to run it"
            )
        try:
            with self.gpu.current():
                yield lane
        except self.gpu.driver.MemoryError as error:
            raise self.gpu.out_of_memory("a run", None, _SMALLER) from error
        except self.gpu.driver.Error as error:
            lost = self.gpu.lost(error)
            self._broken = str(lost)
            raise lost from error
        finally:
            self._free.put(lane)

    def _check_ranges(self, feeds: Mapping[str, Any]) -> None:
        for name, (low, high) in self.ranges.items():
            got = tuple(feeds[name].shape)
            if not all(a <= size <= b for a, size, b in zip(low, got, high, strict=True)):
                raise EngineInputError(
                    f"input {name}: shape {format_shape(got)} is outside what the engine takes, {format_shape(low)} to "
                    f"{format_shape(high)}; split the batch, or build with another --dynamic-batch MIN:OPT:MAX"
                )

    def _close(self) -> None:
        for _ in self._lanes:
            self._free.get()  # calls that run in other threads end first
        self._free.put(None)
        # on a device that failed nothing can be freed, and that must not hide why it failed
        forgiven = suppress(self.gpu.driver.Error) if self._broken else nullcontext()
        with forgiven, self.gpu.current():
            if self._cache is not None and not self._broken:
                self._cache.save()
            self._release()

    def _release(self) -> None:
        """Free everything in the reverse order of its making; the context must be current."""
        while self._lanes:
            self._lanes.pop().close()
        self._cache = None
        self._engine = None
        self._keep = ()


_SMALLER = "build with a smaller --dynamic-batch or --batch-size, or free memory that other programs hold"


def _remedy(contexts: int, ranges: Mapping[str, Any]) -> str:
    fewer = "pass fewer contexts, or " if contexts > 1 else ""
    smaller = "--dynamic-batch with a smaller maximum" if ranges else "a smaller --batch-size"
    return f"{fewer}build with {smaller}, or free memory that other programs hold"


def _activation_bytes(engine: Any) -> int | None:
    for name in ("device_memory_size_v2", "device_memory_size"):
        if hasattr(engine, name):
            return int(getattr(engine, name))
    return None


def _tensors(
    trt: ModuleType, engine: Any, title: str
) -> tuple[
    tuple[TensorSpec, ...], tuple[TensorSpec, ...], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
]:
    """Inputs, outputs, and for each input with an open dimension the smallest and largest shape of its profile."""
    inputs, outputs, ranges = [], [], {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        spec = TensorSpec(name, shape, numpy_type(engine.get_tensor_dtype(name)))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            inputs.append(spec)
            if None in shape:
                low, _, high = engine.get_tensor_profile_shape(name, 0)
                ranges[name] = (tuple(map(int, low)), tuple(map(int, high)))
        else:
            outputs.append(spec)
            if None in shape[1:]:
                raise EngineLoadError(
                    f"output {name} of this {title} engine has shape {format_shape(shape)}; only the batch may be open"
                )
    return tuple(inputs), tuple(outputs), ranges


def _check_tensor(spec: TensorSpec, tensor: Any, number: int) -> None:
    """Refuse what is not a contiguous PyTorch tensor of the input's dtype and rank on this GPU."""
    if not hasattr(tensor, "data_ptr"):
        raise EngineInputError(
            f"input {spec.name}: expected a PyTorch tensor on cuda:{number}, got {type(tensor).__name__}; use infer() for numpy"
        )
    if tensor.device.type != "cuda" or (tensor.device.index or 0) != number:
        raise EngineInputError(
            f"input {spec.name} is on {tensor.device}, the engine on cuda:{number}; move it with .to('cuda:{number}')"
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise EngineInputError(f"input {spec.name}: expected dtype {spec.dtype}, got {dtype}")
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        size in (None, got) for size, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise EngineInputError(
            f"input {spec.name}: expected shape {format_shape(spec.shape)}, got {format_shape(shape)}"
        )
    if not tensor.is_contiguous():
        raise EngineInputError(f"input {spec.name} is not contiguous; pass it through .contiguous()")
