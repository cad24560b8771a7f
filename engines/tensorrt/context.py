"""A context slot: one execution context of a TensorRT engine with all that a call needs: memory, stream, events, CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.errors import EngineRunError
from engines.tensorrt import cuda

if TYPE_CHECKING:
    import numpy as np

    from engines.tensorrt.bindings import Bindings
    from engines.tensorrt.library import Library

# CU_STREAM_NON_BLOCKING of the CUDA driver API: a stream that does not wait for stream 0.
_NON_BLOCKING = 1


class ContextSlot:
    """Runs one call at a time. The device's context must be current for every method.

    A CUDA graph holds one shape: TensorRT keeps state of its own in a context, so several graphs would need a context each.
    The first call of a shape runs plainly, since TensorRT does work there that a graph must not repeat; the second is
    captured; later ones are replayed.

    Args:
        library: that runs the engine.
        device: the GPU.
        bindings: of the engine.
        context: the `IExecutionContext`; owned from here on.
        graphs: the driver's bindings that know CUDA graphs; None to run without.
        notes: what did not go as asked is added here.
    """

    def __init__(
        self,
        library: Library,
        device: cuda.CudaDevice,
        bindings: Bindings,
        context: Any,
        graphs: ModuleType | None,
        notes: list[str],
    ) -> None:
        self.context = context
        self._library = library
        self._gpu = device
        self._bindings = bindings
        self._graphs = graphs
        self._notes = notes
        self._graph: cuda.CudaGraph | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None  # of the last run on this slot's memory
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}
        self._stream: Any = None
        self._started: Any = None
        self._ended: Any = None

    @property
    def is_captured(self) -> bool:
        """Whether it replays a CUDA graph of the shape that it ran last."""
        return self._graph is not None

    def allocate(self, remedy: str) -> None:
        """Make stream and events, and memory for the largest batch, once for all runs.

        Raises:
            EngineLoadError: out of memory.
        """
        import numpy as np

        driver, bindings = self._gpu.driver, self._bindings
        self._stream = driver.Stream(_NON_BLOCKING)
        self._started, self._ended = driver.Event(), driver.Event()
        for spec in (*bindings.inputs, *bindings.outputs):
            shape = bindings.largest_shape(spec)
            size = math.prod(shape) * np.dtype(spec.dtype).itemsize
            self._device[spec.name] = self._gpu.allocate(size, f"tensor {spec.name}", remedy)
            self._host[spec.name] = self._gpu.allocate_host(shape, spec.dtype, f"tensor {spec.name}", remedy)

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
        """Copy in, execute, copy out, wait; the outputs and the seconds between the two copies on the GPU."""
        driver, stream = self._gpu.driver, self._stream
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._bindings.inputs}
        for name, array in feeds.items():
            staged = self._host[name][: len(array)] if array.ndim else self._host[name]
            staged[...] = array
            driver.memcpy_htod_async(self._device[name], staged, stream)
        self._started.record(stream)
        self._enqueue(shapes)
        self._ended.record(stream)
        outputs = {}
        for spec in self._bindings.outputs:
            shape = self._output_shape(spec.name)
            staged = self._host[spec.name][: shape[0]] if shape else self._host[spec.name]
            driver.memcpy_dtoh_async(staged, self._device[spec.name], stream)
            outputs[spec.name] = staged
        stream.synchronize()
        milliseconds = self._started.time_till(self._ended)
        # copies: the staging memory is written over by the next run
        return {name: staged.copy() for name, staged in outputs.items()}, milliseconds / 1e3

    def run_on_device(self, shapes: dict[str, tuple[int, ...]], pointers: Mapping[str, int]) -> None:
        """Execute on memory that PyTorch owns, in order with PyTorch's current stream; waits for nothing."""
        import torch

        self._drop_graph()
        self._set_shapes(shapes)
        for name, pointer in pointers.items():
            self._accepted(self.context.set_tensor_address(name, pointer), f"the address of {name}")
        # Not on PyTorch's stream itself, which is mostly stream 0: TensorRT would wait for the whole device there.
        ours = torch.cuda.ExternalStream(self._stream.handle, device=self._gpu.number)
        theirs = torch.cuda.current_stream(self._gpu.number)
        ours.wait_stream(theirs)
        self._execute(self._stream.handle)
        theirs.wait_stream(ours)

    def profile(self, feeds: Mapping[str, np.ndarray], profiler: Any, runs: int) -> None:
        """Run with a profiler attached, once untimed; a context that was profiled is never captured again."""
        self._graphs = None
        self._drop_graph()
        self.run(feeds)
        self.context.profiler = profiler
        for _ in range(runs):
            self.run(feeds)

    def close(self) -> None:
        """Free everything; a slot that never got all it asked for too."""
        if self._stream is not None:  # `run_on_device` waits for nothing
            self._stream.synchronize()
        with suppress(cuda.GraphError):  # on a device that failed there is nothing left to destroy
            self._drop_graph()
        self.context = None
        for memory in self._device.values():
            memory.free()
        for array in self._host.values():
            array.base.free()
        self._device, self._host = {}, {}
        self._stream = self._started = self._ended = None

    def _enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Execute on this slot's own memory: by the graph, by capturing one, or plainly."""
        if shapes == self._shapes:
            if self._graph is None and self._graphs is not None:
                self._graph = self._capture()
            if self._graph is not None:
                self._graph.launch(self._stream)
                return
        else:
            self._drop_graph()
            self._set_shapes(shapes)
            for name, memory in self._device.items():
                self._accepted(self.context.set_tensor_address(name, int(memory)), f"the address of {name}")
            self._shapes = shapes
        self._execute(self._stream.handle)

    def _capture(self) -> cuda.CudaGraph | None:
        """Capture the execution; where that fails, say why and run plainly from now on."""
        assert self._graphs is not None
        # A library that compiles kernels while it runs says when it is done; until then it runs plainly.
        asked = getattr(self.context, "is_stream_capturable", None)
        if asked is not None and not asked(self._stream.handle):
            return None
        try:
            with cuda.capture(self._graphs, self._stream) as captured:
                self._execute(self._stream.handle)
            return captured[0]
        except (cuda.GraphError, EngineRunError) as error:
            self._graphs = None
            self._notes.append(f"no CUDA graph: {error}; kernels are launched one by one")
            return None

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = None  # until `_enqueue` has set its own addresses too
        for name in self._bindings.ranges:
            self._accepted(
                self.context.set_input_shape(name, shapes[name]), f"shape {shapes[name]} for {name}"
            )

    def _execute(self, handle: int) -> None:
        seen = len(self._library.messages.errors)
        if not self.context.execute_async_v3(handle):
            said = "; ".join(self._library.messages.errors[seen:]) or "no reason given"
            raise EngineRunError(f"{self._library.title} does not execute: {' '.join(said.split())}")

    def _output_shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self.context.get_tensor_shape(name))

    def _accepted(self, answer: bool, what: str) -> None:
        if not answer:
            raise EngineRunError(f"{self._library.title} refuses {what}")

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
