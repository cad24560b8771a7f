"""Device memory, streams, events and graphs of one GPU: PyCUDA for all but graphs, which it does not know.

Everything lives in the device's primary context, the one that PyTorch uses too, so device pointers can be exchanged. A thread
has to make the context current before any call here (`CudaDevice.current`); TensorRT takes the current context as well.
"""

from __future__ import annotations

import atexit
import importlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from engines.errors import EngineLoadError, EngineNotInstalledError, EngineRunError, NoGpuError
from engines.install import pip_install

if TYPE_CHECKING:
    import numpy as np

# of the CUDA driver API: CU_EVENT_DISABLE_TIMING, CUDA_ERROR_OUT_OF_MEMORY
_DISABLE_TIMING = 2
_OUT_OF_MEMORY = 2

# Primary contexts retained by this process, by ordinal. Each is kept to the end: PyCUDA's `detach` leaves a primary
# context on the thread's stack, and a context that another thread made current cannot be detached at all.
_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()


@atexit.register
def _release_contexts() -> None:
    """Give the contexts back by name: PyCUDA's destructor takes a primary context for one of its own, and warns."""
    while _contexts:
        _contexts.popitem()[1].detach()


def ordinal(device: str | None) -> int:
    """The number of a device: "cuda:1" is 1; "cuda", "gpu" and None are the first.

    Raises:
        EngineLoadError: it is no CUDA device.
    """
    kind, _, number = (device or "cuda").partition(":")
    if kind not in ("cuda", "gpu") or not (number or "0").isdecimal():
        raise EngineLoadError(f"TensorRT engines run on a GPU, not on {device!r}; pass cuda or cuda:N")
    return int(number or 0)


def import_driver() -> ModuleType:
    """Import PyCUDA's driver module, initialised.

    Raises:
        EngineNotInstalledError: PyCUDA is missing or cannot be imported.
        NoGpuError: the driver has no device.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
    except Exception as error:  # a broken extension may raise anything while it loads
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "pycuda":
            raise EngineNotInstalledError(
                "running TensorRT engines needs PyCUDA",
                f"run {pip_install('pycuda', 'cuda-bindings')} (pycuda is compiled and needs the CUDA toolkit's headers)",
            ) from None
        raise EngineNotInstalledError(
            f"PyCUDA is installed but cannot be imported ({' '.join(str(error).split())})",
            "install the NVIDIA driver, or reinstall pycuda",
        ) from error
    try:
        driver.init()
    except driver.Error as error:
        raise NoGpuError(f"the NVIDIA driver does not start: {error}; check nvidia-smi") from error
    return driver


class CudaDevice:
    """One device and its primary context.

    Raises:
        NoGpuError: there is no such device.
        EngineNotInstalledError: PyCUDA is missing.
    """

    def __init__(self, number: int = 0) -> None:
        self.driver = import_driver()
        count = self.driver.Device.count()
        if number >= count:
            raise NoGpuError(
                f"there is no GPU {number}; this machine has {count}, numbered from 0; pass --device cuda:N"
            )
        self.number = number
        device = self.driver.Device(number)
        self.name: str = device.name()
        self.compute_capability = "sm{}{}".format(*device.compute_capability())
        with _contexts_lock:
            if number not in _contexts:
                try:
                    _contexts[number] = device.retain_primary_context()
                except self.driver.Error as error:
                    raise NoGpuError(f"GPU {number} ({self.name}) cannot be used: {error}") from error
        self._context = _contexts[number]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current in this thread for a block."""
        self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    def allocate(self, byte_count: int, what: str, remedy: str) -> Any:
        """Device memory; `int()` of it is the address, `free()` gives it back.

        Raises:
            EngineLoadError: there is not enough; says how much, and the remedy.
        """
        try:
            return self.driver.mem_alloc(byte_count)
        except self.driver.MemoryError as error:
            raise self.out_of_memory(what, byte_count, remedy) from error

    def allocate_host(self, shape: tuple[int, ...], dtype: str, what: str, remedy: str) -> np.ndarray:
        """Page-locked host memory as an array; `array.base.free()` gives it back.

        Raises:
            EngineLoadError: there is not enough.
        """
        import numpy as np

        try:
            return self.driver.pagelocked_empty(shape, np.dtype(dtype))
        except self.driver.MemoryError as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            raise EngineLoadError(
                f"{_size(size)} of page-locked memory for {what} are not to be had; {remedy}"
            ) from error

    def out_of_memory(self, what: str, byte_count: int | None, remedy: str) -> EngineLoadError:
        """The error of too little device memory, with what is free."""
        with self.current():  # a caller may have left it by now
            free, total = self.driver.mem_get_info()
        needed = "" if byte_count is None else f" needs {_size(byte_count)} and"
        return EngineLoadError(
            f"out of memory on {self.name}: {what}{needed} finds {_size(free)} of {_size(total)} free; {remedy}"
        )

    def failure(self, error: Exception) -> Literal["memory", "lost"] | None:
        """What an exception of a call says of the device, whichever of the three that speak to the driver raised it.

        Args:
            error: of PyCUDA, of cuda-bindings, or of PyTorch, whose errors are RuntimeErrors: one type for memory that ran
                out, and else "CUDA error: ..." (`torch.AcceleratorError` in newer releases).

        Returns:
            "memory" where too little was free, and everything works on; "lost" where nothing does; None for another error.
        """
        if isinstance(error, GraphError):
            return "memory" if error.out_of_memory else "lost"
        if isinstance(error, self.driver.MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return "memory"
        if isinstance(error, self.driver.Error):
            return "lost"
        return "lost" if isinstance(error, RuntimeError) and "CUDA error" in str(error) else None

    def lost(self, error: Exception) -> EngineRunError:
        """The error of a device that failed in the middle of a run: nothing in its context works any more."""
        return EngineRunError(
            f"{self.name} failed during a run ({' '.join(str(error).split())}); every later call in this process "
            "would fail too: start the program again, and check nvidia-smi and the kernel's log if it happens again"
        )


class CudaGraph:
    """A captured CUDA graph of what one stream did.

    Of cuda-bindings, since PyCUDA has no graphs.
    """

    def __init__(self, api: ModuleType, executable: Any) -> None:
        self._launch = api.cuGraphLaunch
        self._destroy = api.cuGraphExecDestroy
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Enqueue everything captured, as one call, on any stream of the device, by its handle; 0 is the default stream.

        Raises:
            GraphError: the driver refuses.
        """
        (status,) = self._launch(self._executable, stream)
        if status:
            raise GraphError(status)

    def close(self) -> None:
        _checked(self._destroy(self._executable))


class Fence:
    """Keeps streams that take turns at the same memory in the order of their turns, by an event of cuda-bindings."""

    def __init__(self, api: ModuleType) -> None:
        self._api = api
        self._event = _checked(api.cuEventCreate(_DISABLE_TIMING))
        self._stream: int | None = None  # of the last turn; None where its work is known to be done

    def enter(self, stream: int) -> None:
        """Let a stream begin its turn when the one before has ended. A stream that was the last one too waits for nothing.

        Raises:
            GraphError: the driver refuses.
        """
        if self._stream is not None and self._stream != stream:
            _checked(self._api.cuStreamWaitEvent(stream, self._event, 0))

    def leave(self, stream: int) -> None:
        """End the turn of a stream with what is enqueued on it so far."""
        (status,) = self._api.cuEventRecord(self._event, stream)
        if status:
            raise GraphError(status)
        self._stream = stream

    def wait(self) -> None:
        """Wait, in this thread, for the end of the last turn.

        Raises:
            GraphError: the device failed.
        """
        if self._stream is not None:
            _checked(self._api.cuEventSynchronize(self._event))
            self._stream = None

    def close(self) -> None:
        """Free the event."""
        _checked(self._api.cuEventDestroy(self._event))


def copy_on_device(api: ModuleType, target: int, source: int, byte_count: int, stream: int) -> None:
    """Enqueue a copy between two addresses of the device.

    Raises:
        GraphError: the driver refuses.
    """
    (status,) = api.cuMemcpyDtoDAsync(target, source, byte_count, stream)
    if status:
        raise GraphError(status)


class GraphError(Exception):
    """The driver refused a call of cuda-bindings; while a graph is captured, the work can be done without one.

    Args:
        status: the `CUresult`.
    """

    def __init__(self, status: Any) -> None:
        super().__init__(getattr(status, "name", None) or f"CUDA error {int(status)}")
        self.out_of_memory = int(status) == _OUT_OF_MEMORY


def import_graphs() -> ModuleType | None:
    """Import the driver bindings that know graphs; None where they are missing."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return None


@contextmanager
def capture(api: ModuleType, stream: Any) -> Iterator[list[CudaGraph]]:
    """Capture what a block enqueues on `stream`, which then does not run; the list gets the graph.

    The capture is thread-local: other threads go on using the device meanwhile.

    Raises:
        GraphError: the block did something that cannot be captured.
    """
    captured: list[CudaGraph] = []
    mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _checked(api.cuStreamBeginCapture(stream.handle, mode))
    try:
        yield captured
    except BaseException:
        # Ends the capture, else the stream stays unusable; what it was capturing is invalid by now.
        status, graph = api.cuStreamEndCapture(stream.handle)
        if int(status) == 0:
            api.cuGraphDestroy(graph)
        raise
    graph = _checked(api.cuStreamEndCapture(stream.handle))
    try:
        captured.append(CudaGraph(api, _checked(api.cuGraphInstantiate(graph, 0))))
    finally:
        _checked(api.cuGraphDestroy(graph))


def _checked(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise GraphError(status)
    return values[0] if values else None


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
