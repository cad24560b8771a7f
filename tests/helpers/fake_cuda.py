"""A GPU that is not there: PyCUDA's driver module and the graph calls of cuda-bindings over host memory, which fail on misuse.

Work on a stream runs only when the stream is waited for, so a result read too early is seen to be stale; memory that is
freed while work on it is pending, a call without a current context, or a wait during a capture is a `MisuseError`.
"""

from __future__ import annotations

import enum
import functools
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.helpers.fake_streams import Error, Event, Mark, MisuseError, Stream


class OutOfMemoryError(Error):
    """pycuda.driver.MemoryError."""


class FakeGpu:
    """One device. `driver` stands for pycuda.driver, `graphs` for cuda.bindings.driver; `calls` counts those of both by name."""

    def __init__(
        self, memory: int = 1 << 30, name: str = "Fake GPU", capability: tuple[int, int] = (8, 9)
    ) -> None:
        self.name, self.capability, self.memory = name, capability, memory
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.live_graphs: set[int] = set()
        self.live_events: set[int] = set()  # of cuda.bindings.driver
        self.calls: Counter[str] = Counter()
        self.violations: list[str] = []
        self.detached = 0
        self.exhausted = False  # no copy finds the memory it needs
        self.interleave = False  # while a stream is waited for, the others run as well, an item each in turn
        self.launches = 0  # of captured graphs
        self.refuse_capture = False
        self.refuse_launch: int | None = None  # the CUresult of every launch
        self.fail_with: str | None = None  # the next wait raises it, and so does everything after
        self.largest_use = 0
        self._numbers = itertools.count(1)
        self._current = threading.local()
        self._lock = threading.RLock()
        self.driver = self._counted(self._make_driver())
        self.graphs = self._counted(self._make_graphs())

    def _counted(self, api: SimpleNamespace) -> SimpleNamespace:
        """Count calls of a module's functions."""

        def counted(name: str, function: Callable) -> Callable:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                self.calls[name] += 1
                return function(*args, **kwargs)

            return call

        for name, found in vars(api).items():
            if callable(found) and not isinstance(found, type):
                setattr(api, name, counted(name, found))
        return api

    # -- checks

    def stack(self) -> list[Any]:
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        return self._current.stack

    def need_context(self, what: str) -> None:
        if not self.stack():
            raise MisuseError(f"{what} without a current context in this thread")
        if self.fail_with and self.fail_with.startswith("!"):
            raise Error(self.fail_with[1:])

    def assert_clean(self) -> None:
        """Everything was given back and nothing was misused."""
        assert not self.violations, self.violations
        left = {
            "device": self.device,
            "host": self.host,
            "streams": self.streams,
            "graphs": self.live_graphs,
            "events": self.live_events,
        }
        assert not any(left.values()), {key: len(value) for key, value in left.items() if value}
        assert not self.stack(), "a context is still current"

    def memory_at(self, address: int, byte_count: int, what: str) -> np.ndarray:
        """The bytes of an address, which must lie within one live allocation."""
        for start, data in self.device.items():
            if start <= address and address + byte_count <= start + data.size:
                return data[address - start : address - start + byte_count]
        raise MisuseError(f"{what}: {byte_count} bytes at {address:#x} are not allocated")

    # -- pycuda.driver

    def _make_driver(self) -> SimpleNamespace:
        gpu = self

        class Context:
            def push(self) -> None:
                gpu.stack().append(self)

            def detach(self) -> None:
                gpu.detached += 1

            @staticmethod
            def pop() -> None:
                if not gpu.stack():
                    raise MisuseError("pop of a context that is not current")
                gpu.stack().pop()

        class Device:
            def __init__(self, number: int) -> None:
                if number != 0:
                    raise Error("invalid device ordinal")

            @staticmethod
            def count() -> int:
                return 1

            def name(self) -> str:
                return gpu.name

            def compute_capability(self) -> tuple[int, int]:
                return gpu.capability

            def retain_primary_context(self) -> Context:
                return Context()

        class DeviceAllocation:
            def __init__(self, address: int) -> None:
                self._address: int | None = address

            def __int__(self) -> int:
                if self._address is None:
                    raise MisuseError("address of freed memory")
                return self._address

            def free(self) -> None:
                gpu.need_context("mem_free")
                if self._address is None:
                    raise MisuseError("memory freed twice")
                if any(stream.works for stream in list(gpu.streams.values())):
                    gpu.violations.append("device memory was freed while work was pending")
                del gpu.device[self._address]
                self._address = None

        class HostAllocation:
            def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
                self._data = np.zeros(shape, dtype)
                self.__array_interface__ = self._data.__array_interface__
                gpu.host[id(self)] = self._data

            def free(self) -> None:
                gpu.need_context("mem_host_free")
                if gpu.host.pop(id(self), None) is None:
                    raise MisuseError("host memory freed twice")

        def mem_alloc(byte_count: int) -> DeviceAllocation:
            gpu.need_context("mem_alloc")
            with gpu._lock:
                used = sum(data.size for data in gpu.device.values())
                if used + byte_count > gpu.memory:
                    raise OutOfMemoryError("cuMemAlloc failed: out of memory")
                address = 0x7F0000000000 + next(gpu._numbers) * (1 << 32)
                gpu.device[address] = np.full(byte_count, 0xAB, np.uint8)
                gpu.largest_use = max(gpu.largest_use, used + byte_count)
            return DeviceAllocation(address)

        def pagelocked_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            gpu.need_context("pagelocked_empty")
            return np.asarray(HostAllocation(shape, np.dtype(dtype)))

        def locked(array: np.ndarray, what: str) -> None:
            if not array.flags.c_contiguous:
                raise MisuseError(f"{what} of an array that is not contiguous")
            if not any(np.shares_memory(array, whole) for whole in gpu.host.values()):
                raise MisuseError(f"{what} of memory that is not page-locked does not run beside the CPU")

        def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream) -> None:
            gpu.need_context("memcpy_htod_async")
            if gpu.exhausted:
                raise OutOfMemoryError("cuMemcpyHtoDAsync failed: out of memory")
            locked(src, "memcpy_htod_async")
            address = int(dest)
            gpu.memory_at(address, src.nbytes, "memcpy_htod_async")

            def copy() -> None:
                gpu.memory_at(address, src.nbytes, "memcpy")[:] = src.reshape(-1).view(np.uint8)

            stream.enqueue(copy)

        def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream) -> None:
            gpu.need_context("memcpy_dtoh_async")
            locked(dest, "memcpy_dtoh_async")
            address = int(src)
            gpu.memory_at(address, dest.nbytes, "memcpy_dtoh_async")

            def copy() -> None:
                dest.reshape(-1).view(np.uint8)[:] = gpu.memory_at(address, dest.nbytes, "memcpy")

            stream.enqueue(copy)

        def mem_get_info() -> tuple[int, int]:
            gpu.need_context("mem_get_info")
            return gpu.memory - sum(data.size for data in gpu.device.values()), gpu.memory

        return SimpleNamespace(
            Error=Error,
            MemoryError=OutOfMemoryError,
            Context=Context,
            Device=Device,
            Stream=lambda flags=0: Stream(gpu, flags),
            Event=lambda flags=0: Event(gpu, flags),
            init=lambda: None,
            mem_alloc=mem_alloc,
            pagelocked_empty=pagelocked_empty,
            memcpy_htod_async=memcpy_htod_async,
            memcpy_dtoh_async=memcpy_dtoh_async,
            mem_get_info=mem_get_info,
        )

    # -- cuda.bindings.driver

    def _make_graphs(self) -> SimpleNamespace:
        gpu = self
        graphs: dict[int, list[Callable[[], None]]] = {}

        class CUresult(enum.IntEnum):
            CUDA_SUCCESS = 0
            CUDA_ERROR_OUT_OF_MEMORY = 2
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
            CUDA_ERROR_LAUNCH_FAILED = 719

        class CUstreamCaptureMode(enum.IntEnum):
            CU_STREAM_CAPTURE_MODE_GLOBAL = 0
            CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

        good = CUresult.CUDA_SUCCESS

        def begin(handle: int, mode: CUstreamCaptureMode) -> tuple:
            stream = gpu.streams[handle]
            if stream.captured is not None:
                raise MisuseError("a capture was begun within a capture")
            stream.captured = []
            stream.invalid = gpu.refuse_capture
            return (good,)

        def end(handle: int) -> tuple:
            stream = gpu.streams[handle]
            if stream.captured is None:
                raise MisuseError("a capture was ended that was not begun")
            captured, stream.captured = stream.captured, None
            if stream.invalid:
                return (CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None)
            graph = next(gpu._numbers)
            graphs[graph] = captured
            gpu.live_graphs.add(graph)
            return good, graph

        def instantiate(graph: int, flags: int) -> tuple:
            made = next(gpu._numbers)
            graphs[made] = graphs[graph]
            gpu.live_graphs.add(made)
            return good, made

        def launch(executable: int, handle: int) -> tuple:
            gpu.need_context("cuGraphLaunch")
            if executable not in gpu.live_graphs:
                raise MisuseError("a destroyed graph was launched")
            if gpu.refuse_launch:
                return (CUresult(gpu.refuse_launch),)
            gpu.launches += 1
            for work in graphs[executable]:
                gpu.streams[handle].enqueue(work)
            return (good,)

        def destroy(graph: int) -> tuple:
            gpu.live_graphs.remove(graph)
            if any(work in graphs[graph] for stream in gpu.streams.values() for work in stream.pending):
                gpu.violations.append("a graph was destroyed while a launch of it was pending")
            return (good,)

        marks: dict[int, Mark] = {}

        def create_event(flags: int) -> tuple:
            gpu.need_context("cuEventCreate")
            event = next(gpu._numbers)
            gpu.live_events.add(event)
            return good, event

        def record_event(event: int, handle: int) -> tuple:
            gpu.need_context("cuEventRecord")
            marks[event] = Mark(gpu.streams[handle])
            return (good,)

        def wait_for_event(handle: int, event: int, flags: int) -> tuple:
            gpu.need_context("cuStreamWaitEvent")
            if event in marks:
                marks[event].hold(gpu.streams[handle])
            return (good,)

        def synchronize_event(event: int) -> tuple:
            gpu.need_context("cuEventSynchronize")
            marks[event].reach()
            return (good,)

        def destroy_event(event: int) -> tuple:
            gpu.live_events.remove(event)
            marks.pop(event, None)
            return (good,)

        def copy(target: int, source: int, byte_count: int, handle: int) -> tuple:
            gpu.need_context("cuMemcpyDtoDAsync")
            for address in (target, source):
                gpu.memory_at(address, byte_count, "cuMemcpyDtoDAsync")

            def work() -> None:
                gpu.memory_at(target, byte_count, "a copy")[:] = gpu.memory_at(source, byte_count, "a copy")

            gpu.streams[handle].enqueue(work)
            return (good,)

        return SimpleNamespace(
            CUstreamCaptureMode=CUstreamCaptureMode,
            cuStreamBeginCapture=begin,
            cuStreamEndCapture=end,
            cuGraphInstantiate=instantiate,
            cuGraphLaunch=launch,
            cuGraphDestroy=destroy,
            cuGraphExecDestroy=destroy,
            cuEventCreate=create_event,
            cuEventRecord=record_event,
            cuStreamWaitEvent=wait_for_event,
            cuEventSynchronize=synchronize_event,
            cuEventDestroy=destroy_event,
            cuMemcpyDtoDAsync=copy,
        )
