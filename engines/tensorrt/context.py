"""A context slot: one execution context of a TensorRT engine with all that a call needs: memory, stream, events, CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
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

    There is one CUDA graph at a time, of one shape at one set of addresses: whoever changes a context from which a graph was
    captured must not launch that graph again, and TensorRT's documents advise one context a graph (NVIDIA TensorRT
    documentation, "CUDA graphs"). The first call of a shape runs plainly, since TensorRT does work there that a graph must
    not repeat; the second is captured; later ones are launched.

    A graph is captured where the caller's tensors lie, and costs no copy as long as they lie there. A tensor that is
    elsewhere at the next call goes through this slot's own memory from then on, by a copy on the device, and the graph is
    captured once more.

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
        self._specs = (*bindings.inputs, *bindings.outputs)
        self._api = graphs
        self._captures = graphs is not None
        self._notes = notes
        self._graph: cuda.CudaGraph | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None  # of the inputs, as the context has them
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self._sizes: tuple[
            int, ...
        ] = ()  # of the tensors in these shapes, in bytes, in the order of `_specs`
        self._bound: tuple[int, ...] = ()  # addresses, as the context has them
        self._own: tuple[int, ...] = ()  # of this slot's memory
        self._ran = False  # a call of these shapes ran plainly
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}
        self._activations: Any = None
        self._stream: Any = None
        self._fence: cuda.Fence | None = None  # made for the first call that runs on a stream of PyTorch's
        self._started: Any = None
        self._ended: Any = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Of the inputs that it ran last; None before any."""
        return self._shapes

    @property
    def is_captured(self) -> bool:
        """Whether it replays a CUDA graph of the shape that it ran last."""
        return self._graph is not None

    def allocate(self, remedy: str, activation_bytes: int = 0) -> None:
        """Make stream and events, and memory for the largest batch, once for all runs.

        Args:
            remedy: what lowers the memory that is needed.
            activation_bytes: that the context wants for its activations, if it does not allocate them itself.

        Raises:
            EngineLoadError: out of memory.
        """
        import numpy as np

        driver, bindings = self._gpu.driver, self._bindings
        self._stream = driver.Stream(_NON_BLOCKING)
        self._started, self._ended = driver.Event(), driver.Event()
        if activation_bytes:
            self._activations = self._gpu.allocate(activation_bytes, "an execution context", remedy)
            self.context.set_device_memory(int(self._activations), activation_bytes)
        for spec in self._specs:
            shape = bindings.largest_shape(spec)
            size = math.prod(shape) * np.dtype(spec.dtype).itemsize
            self._device[spec.name] = self._gpu.allocate(size, f"tensor {spec.name}", remedy)
            self._host[spec.name] = self._gpu.allocate_host(shape, spec.dtype, f"tensor {spec.name}", remedy)
        self._own = tuple(int(self._device[spec.name]) for spec in self._specs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
        """Copy in, execute, copy out, wait; the outputs and the seconds between the two copies on the GPU."""
        driver, stream = self._gpu.driver, self._stream
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._bindings.inputs}
        if self._fence is not None:
            self._fence.enter(stream.handle)
        for name, array in feeds.items():
            staged = self._host[name][: len(array)] if array.ndim else self._host[name]
            staged[...] = array
            driver.memcpy_htod_async(self._device[name], staged, stream)
        self._started.record(stream)
        graph = self._graph_for(shapes, self._own)
        if graph is not None:
            graph.launch(stream.handle)
        else:
            self._run_plainly(shapes, self._own)
        self._ended.record(stream)
        outputs = {}
        for name, shape in self._output_shapes.items():
            staged = self._host[name][: shape[0]] if shape else self._host[name]
            driver.memcpy_dtoh_async(staged, self._device[name], stream)
            outputs[name] = staged
        if self._fence is not None:
            self._fence.leave(stream.handle)
        stream.synchronize()
        milliseconds = self._started.time_till(self._ended)
        # copies: the staging memory is written over by the next run
        return {name: staged.copy() for name, staged in outputs.items()}, milliseconds / 1e3

    def run_on_device(
        self, shapes: dict[str, tuple[int, ...]], addresses: tuple[int, ...], theirs: Any
    ) -> None:
        """Execute on memory that PyTorch owns, in order with a stream of its; waits for nothing.

        Args:
            shapes: of the inputs.
            addresses: of inputs and outputs, in the order of the bindings.
            theirs: the `torch.cuda.Stream`.
        """
        graph = self._graph_for(shapes, addresses)
        if graph is not None:
            self._launch(graph, addresses, theirs.cuda_stream)
            return
        import torch

        # Not on PyTorch's stream itself, which is mostly stream 0: TensorRT would wait for the whole device there.
        ours = torch.cuda.ExternalStream(self._stream.handle, device=self._gpu.number)
        ours.wait_stream(theirs)
        self._run_plainly(shapes, addresses)  # no launch of a graph is pending: who drops one waits for it
        theirs.wait_stream(ours)
        if self._fence is not None:
            self._fence.leave(self._stream.handle)

    def profile(self, feeds: Mapping[str, np.ndarray], profiler: Any, runs: int) -> None:
        """Run with a profiler attached, once untimed; a context that was profiled is never captured again."""
        self._captures = False
        self._drop_graph()
        self.run(feeds)
        self.context.profiler = profiler
        for _ in range(runs):
            self.run(feeds)

    def close(self) -> None:
        """Free everything, each whatever another raises; of a slot that never got all it asked for, what it has."""
        with ExitStack() as each:
            for array in self._host.values():
                each.callback(array.base.free)
            for memory in self._device.values():
                each.callback(memory.free)
            if self._activations is not None:
                each.callback(self._activations.free)
            each.callback(self._forget)
            if self._fence is not None:
                each.callback(self._fence.close)
            each.callback(self._drop_graph)
            if self._stream is not None:  # `run_on_device` waits for nothing
                each.callback(self._stream.synchronize)

    def _forget(self) -> None:
        self.context = self._fence = self._activations = None
        self._device, self._host = {}, {}
        self._stream = self._started = self._ended = None

    def _launch(self, graph: cuda.CudaGraph, addresses: tuple[int, ...], stream: int) -> None:
        """Launch on a stream of PyTorch's; what lies elsewhere than the graph has it is copied in and out."""
        if self._fence is None:
            self._fence = cuda.Fence(self._api)
            # what runs on this slot's own stream so far was not fenced
            self._fence.leave(self._stream.handle)
        self._fence.enter(stream)
        if addresses == self._bound:
            graph.launch(stream)
        else:
            inputs = len(self._bindings.inputs)
            places = list(zip(addresses, self._bound, self._sizes, strict=True))
            for theirs, ours, size in places[:inputs]:
                if theirs != ours:
                    cuda.copy_on_device(self._api, ours, theirs, size, stream)
            graph.launch(stream)
            for theirs, ours, size in places[inputs:]:
                if theirs != ours:
                    cuda.copy_on_device(self._api, theirs, ours, size, stream)
        self._fence.leave(stream)

    def _graph_for(
        self, shapes: dict[str, tuple[int, ...]], addresses: tuple[int, ...]
    ) -> cuda.CudaGraph | None:
        """The graph that serves these shapes and addresses, captured if its time has come; None to run plainly."""
        if shapes != self._shapes:
            return None
        places = zip(addresses, self._bound, self._own, strict=True)
        if self._graph is not None and (
            addresses == self._bound or all(at in (asked, own) for asked, at, own in places)
        ):
            return self._graph
        if not (self._captures and self._ran and self._is_capturable()):
            return None
        places = zip(addresses, self._bound, self._own, strict=True)
        self._bind(tuple(asked if asked == at else own for asked, at, own in places))
        self._graph = self._capture()
        return self._graph

    def _is_capturable(self) -> bool:
        """Whether a library that compiles kernels while it runs is done with that; one that does not is always."""
        if not self._library.features.capture_query:
            return True
        return bool(self.context.is_stream_capturable(self._stream.handle))

    def _capture(self) -> cuda.CudaGraph | None:
        """Capture the execution; where that fails, say why and run plainly from now on."""
        assert self._api is not None
        try:
            with cuda.capture(self._api, self._stream) as captured:
                self._execute()
            return captured[0]
        except (cuda.GraphError, EngineRunError) as error:
            self._captures = False
            self._notes.append(f"no CUDA graph: {error}; kernels are launched one by one")
            return None

    def _run_plainly(self, shapes: dict[str, tuple[int, ...]], addresses: tuple[int, ...]) -> None:
        """Execute on this slot's stream, kernel by kernel."""
        if shapes != self._shapes:
            self._set_shapes(shapes)
        if addresses != self._bound:
            self._bind(addresses)
        self._execute()
        self._ran = True

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        import numpy as np

        self._drop_graph()
        self._shapes, self._ran = None, False
        for name in self._bindings.ranges:
            self._accepted(
                self.context.set_input_shape(name, shapes[name]), f"shape {shapes[name]} for {name}"
            )
        self._output_shapes = {
            spec.name: tuple(map(int, self.context.get_tensor_shape(spec.name)))
            for spec in self._bindings.outputs
        }
        every = {**shapes, **self._output_shapes}
        self._sizes = tuple(
            math.prod(every[spec.name]) * np.dtype(spec.dtype).itemsize for spec in self._specs
        )
        self._shapes = shapes

    def _bind(self, addresses: tuple[int, ...]) -> None:
        self._drop_graph()
        self._bound = ()
        for spec, address in zip(self._specs, addresses, strict=True):
            self._accepted(self.context.set_tensor_address(spec.name, address), f"the address of {spec.name}")
        self._bound = addresses

    def _execute(self) -> None:
        seen = len(self._library.messages.errors)
        if not self.context.execute_async_v3(self._stream.handle):
            said = "; ".join(self._library.messages.errors[seen:]) or "no reason given"
            raise EngineRunError(f"{self._library.title} does not execute: {' '.join(said.split())}")

    def _accepted(self, answer: bool, what: str) -> None:
        if not answer:
            raise EngineRunError(f"{self._library.title} refuses {what}")

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            if self._fence is not None:
                self._fence.wait()  # a launch of it may still run
            graph.close()
