"""An open TensorRT engine: context slots that take turns, each with memory, stream and CUDA graph of its own.

The order of calls is TensorRT's: shapes and addresses of every tensor first, then `execute_async_v3`, then the stream is
waited for before an output is read (NVIDIA TensorRT developer guide, "Performing inference" and "CUDA graphs").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from engines.base import LayerTime
from engines.errors import EngineInputError, EngineLoadError, EngineRunError
from engines.install import requirement
from engines.runner import Runner
from engines.tensorrt import cuda
from engines.tensorrt.bindings import read_bindings
from engines.tensorrt.context import ContextSlot
from engines.tensorrt.device_tensors import DeviceCalls
from engines.tensorrt.layers import make_profiler, read_layers, timed
from engines.tensorrt.load import activation_bytes, make_context
from engines.tensorrt.slots import SlotPool

if TYPE_CHECKING:
    import numpy as np

    from engines.tensorrt.library import Library
    from engines.tensorrt.runtime_cache import RuntimeCache

_SMALLER = "build with a smaller --dynamic-batch or --batch-size, or free memory that other programs hold"


class TensorRTRunner(Runner):
    """A deserialised engine.

    `infer` may be called from several threads: each call takes a free context slot, and waits where none is.

    Args:
        library: that opened it.
        device: whose context is current while this is called.
        engine: the `ICudaEngine`; owned from here on. runtime: that has to outlive it.
        cache: kernels compiled at run time, kept for the next start, where the library has such a cache.
        contexts: how many calls can run at once.
        cuda_graph: replay the launches of a shape seen before as one.

    Attributes:
        last_gpu_seconds: time on the GPU of the call of `infer` that ended last, transfers left out; None before any.
        notes: what did not go as asked, such as a CUDA graph that could not be captured.
    """

    def __init__(
        self,
        library: Library,
        device: cuda.CudaDevice,
        engine: Any,
        runtime: Any,
        *,
        cache: RuntimeCache | None = None,
        contexts: int = 1,
        cuda_graph: bool = True,
    ) -> None:
        if contexts < 1:
            raise EngineLoadError(f"an engine needs at least one context, got {contexts}")
        self._bindings = read_bindings(library, engine)
        super().__init__(self._bindings.inputs, self._bindings.outputs)
        self._device_calls = DeviceCalls(self._bindings, device.number)
        self.device = device
        self.last_gpu_seconds: float | None = None
        self.notes: list[str] = []
        self._library = library
        self._engine = engine
        self._runtime = runtime
        self._cache = cache
        self._broken: str | None = None
        self._graphs = cuda.import_graphs() if cuda_graph else None
        if cuda_graph and self._graphs is None:
            self.notes.append(
                # into records that leave this machine, so without this Python's path
                f"no CUDA graphs: cuda-bindings is not installed; they need {requirement('cuda-bindings')}"
            )
        self._slots: list[ContextSlot] = []
        self._pool = SlotPool()
        with ExitStack() as undo:
            undo.callback(self._release)
            for _ in range(contexts):
                self._add_slot(contexts)
            undo.pop_all()

    def _add_slot(self, contexts: int) -> None:
        errors = self._library.messages.errors
        seen = len(errors)
        context, wanted = make_context(self._library, self._engine, self._cache)
        if context is None:
            said = "; ".join(errors[seen:]) or "no reason given"
            if "memory" in said.lower():
                raise self.device.out_of_memory(
                    "an execution context", activation_bytes(self._engine), _SMALLER
                )
            raise EngineLoadError(f"{self._library.title} makes no execution context: {said}")
        slot = ContextSlot(self._library, self.device, self._bindings, context, self._graphs, self.notes)
        self._slots.append(slot)  # before it allocates: `_release` then frees what it has
        slot.allocate(_remedy(contexts, self._bindings.ranges), wanted)
        self._pool.add(slot)

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._bindings.check_ranges(feeds)
        with self._slot({name: tuple(array.shape) for name, array in feeds.items()}) as slot:
            outputs, self.last_gpu_seconds = slot.run(feeds)
        return outputs

    @property
    def captured(self) -> int:
        """How many of its context slots replay a CUDA graph of the shape that they ran last."""
        return sum(slot.is_captured for slot in self._slots)

    def infer_device(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Run on PyTorch tensors that are on this GPU; nothing goes through the host.

        The work joins PyTorch's current stream as any operation of PyTorch does: nothing is waited for, and what is
        enqueued there next sees the outputs. From the second call of a shape on it is the launch of a CUDA graph; tensors
        that lie elsewhere than in the call before are copied to and from memory of the engine's, on the device.

        Args:
            feeds: a contiguous tensor for each input.
            out: a tensor for each output, to be written; what an earlier call returned will do. Nothing is allocated then.
                By default the outputs are new tensors.

        Returns:
            A tensor for each output, by name: `out` itself if it was given.

        Raises:
            EngineInputError: a tensor of another device, dtype or shape, or one that is not contiguous.
            EngineLoadError: the GPU's memory ran out.
            EngineRunError: the GPU failed; every later call does too.
        """
        import torch

        if self._closed:
            raise EngineInputError("this engine is closed; load it again to run it")
        self._check_names(feeds)
        call = self._device_calls.find(feeds, out)
        with self._slot(call.shapes) as slot:
            outputs = call.new_outputs() if out is None else out
            addresses = self._device_calls.addresses(feeds, outputs)
            theirs = torch.cuda.current_stream(self.device.number)
            slot.run_on_device(call.shapes, addresses, theirs)
            # What was allocated on another stream must not be handed out there while this one still uses it; on its own
            # stream this is nothing.
            for tensor in feeds.values():
                tensor.record_stream(theirs)
            if out is not None:
                for tensor in out.values():
                    tensor.record_stream(theirs)
        return outputs

    def inspect_layers(self) -> str:
        """What TensorRT's engine inspector tells of the layers, as JSON text."""
        with self._slot() as slot:
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = slot.context
            return inspector.get_engine_information(self._library.trt.LayerInformationFormat.JSON)

    def layer_times(self, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[LayerTime, ...]:
        """Run some times with a profiler; the context is slower from then on.

        Raises:
            EngineError: the inspector's answer cannot be read.
        """
        layers = read_layers(self.inspect_layers())
        self._bindings.check_ranges(feeds)
        profiler = make_profiler(self._library.trt)
        with self._slot() as slot:
            slot.profile(feeds, profiler, runs)
        return timed(layers, profiler.mean_milliseconds())

    @contextmanager
    def _slot(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[ContextSlot]:
        """A free context slot, best one that ran these shapes last, with the device's context current; waits for one."""
        if self._broken:
            raise EngineRunError(self._broken)
        slot = self._pool.take(shapes)
        if slot is None:
            raise EngineInputError(
                "this engine was closed while a call waited for it; load it again to run it"
            )
        try:
            with self.device.current():
                yield slot
        except Exception as error:
            failure = self.device.failure(error)
            if failure == "memory":
                raise self.device.out_of_memory("a run", None, _SMALLER) from error
            if failure == "lost":
                lost = self.device.lost(error)
                self._broken = str(lost)
                raise lost from error
            raise
        finally:
            self._pool.give_back(slot)

    def _close(self) -> None:
        self._pool.close()  # calls that run in other threads end first
        try:
            with self.device.current():
                if self._cache is not None and not self._broken:
                    self._cache.save()
                self._release()
        except Exception as error:
            if self.device.failure(error) is None:
                raise
            # on a device that failed nothing can be freed, and that must not hide why it failed
            if not self._broken:
                raise self.device.lost(error) from error

    def _release(self) -> None:
        """Free everything in the reverse order of its making, each whatever another raises; the context must be current."""
        with ExitStack() as each:
            each.callback(self._forget)
            while self._slots:
                each.callback(self._slots.pop(0).close)

    def _forget(self) -> None:
        self._cache = None
        self._engine = None
        self._runtime = None


def _remedy(contexts: int, ranges: Mapping[str, Any]) -> str:
    fewer = "pass fewer contexts, or " if contexts > 1 else ""
    smaller = "--dynamic-batch with a smaller maximum" if ranges else "a smaller --batch-size"
    return f"{fewer}build with {smaller}, or free memory that other programs hold"
