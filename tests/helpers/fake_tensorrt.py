"""A TensorRT runtime over `fake_cuda`, with the public names of a recorded release and no other.

It keeps the documented order of calls: an engine needs its runtime, a context its engine; a run needs every shape and every
address, a stream of its own, and a device context; nothing is computed before the stream is waited for. The numbers are
right: a fake plan holds an ONNX graph, which ONNX Runtime runs.
"""

from __future__ import annotations

import enum
import functools
import json
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.helpers import trt_api
from tests.helpers.fake_cuda import FakeGpu
from tests.helpers.fake_streams import MisuseError
from tests.helpers.fake_tensorrt_parts import (
    EngineInspector,
    OnnxParserRefitter,
    Refitter,
    RuntimeCache,
    RuntimeConfig,
)

_MAGIC = b"FAKEPLAN"
_USER_MANAGED = 2
_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32}


class EngineValidity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


def make_plan(graph: bytes, *, batch: tuple[int, int, int] | None = None, stripped: bool = False) -> bytes:
    """Return a plan of an ONNX graph; batch: (min, opt, max) of its profile where the graph's batch is open."""
    header = json.dumps({"batch": batch, "stripped": stripped, "size": len(graph)}).encode()
    return _MAGIC + len(header).to_bytes(4, "little") + header + graph


@functools.lru_cache(maxsize=8)
def _session(graph: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class FakeTensorRT:
    """`module` is what `import tensorrt` gives.

    Attributes:
        live: objects that still exist, by kind. executions: runs that were enqueued. compiled: contexts that had to
        compile, without a runtime cache. inspector: what the engine inspector tells.
    """

    def __init__(self, release: str, gpu: FakeGpu, version: str | None = None) -> None:
        self.gpu = gpu
        self.module = trt_api.load(release)
        if version:
            self.module.__version__ = version
        self.live: dict[str, weakref.WeakSet] = {
            kind: weakref.WeakSet() for kind in ("runtime", "engine", "context")
        }
        self.executions = 0
        self.compiled = 0
        self.context_bytes = 0
        self.refuse_runtime = False
        self.refuse_context: list[bool] = []  # of each context that is asked for next
        self.validity = EngineValidity.VALID
        self.diagnostics = 0
        self.capturable = True
        self.inspector = json.dumps({"Layers": [], "Bindings": []})
        self.addresses_seen: list[dict[str, int]] = []
        self._install()

    def assert_clean(self) -> None:
        left = {kind: len(objects) for kind, objects in self.live.items() if objects}
        assert not left, f"still open: {left}"
        self.gpu.assert_clean()

    def _install(self) -> None:
        """Put the classes below in the place of the recorded ones, less what the release does not have."""
        module, fake = self.module, self

        def public(kind: type, name: str) -> type:
            recorded = getattr(module, name)
            known = set(recorded.signatures)
            # copied, not inherited: what the release lacks must not be there, on the class either
            namespace = {}
            for member, found in vars(kind).items():
                if member.startswith("_"):
                    if member not in ("__dict__", "__weakref__"):
                        namespace[member] = found
                elif member in known:
                    namespace[member] = (
                        _checked(recorded, member, found, fake.gpu.calls) if callable(found) else found
                    )
            return type(name, (), {**namespace, "fake": fake})

        for name, kind in (
            ("Runtime", Runtime),
            ("ICudaEngine", CudaEngine),
            ("IExecutionContext", ExecutionContext),
            ("EngineInspector", EngineInspector),
            ("IRuntimeConfig", RuntimeConfig),
            ("IRuntimeCache", RuntimeCache),
            ("Refitter", Refitter),
            ("OnnxParserRefitter", OnnxParserRefitter),
        ):
            if hasattr(module, name):
                setattr(module, name, public(kind, name))
        module.EngineValidity = EngineValidity

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

            def __init__(self) -> None:
                pass

        module.ILogger = ILogger

        class IProfiler:
            def __init__(self) -> None:
                pass

        module.IProfiler = IProfiler


def _checked(recorded: Any, name: str, method: Any, calls: Counter[str]) -> Any:
    """A method that counts its calls and holds their arguments to the recorded signatures."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        trt_api.bind(recorded, name, args, kwargs)
        return method(self, *args, **kwargs)

    return call


class Runtime:
    fake: FakeTensorRT

    def __init__(self, logger: Any) -> None:
        if self.fake.refuse_runtime:
            logger.log(2, "CUDA initialization failure with error: 35. Please check your CUDA installation")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger
        self.fake.live["runtime"].add(self)

    def get_engine_validity(self, plan: bytes) -> tuple[EngineValidity, int]:
        if plan[:8] != _MAGIC:
            return EngineValidity.INVALID, 32  # malformed
        return self.fake.validity, self.fake.diagnostics

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        self.fake.gpu.need_context("deserialize_cuda_engine")
        length = int.from_bytes(plan[8:12], "little")
        try:
            header = json.loads(plan[12 : 12 + length]) if plan[:8] == _MAGIC else {"size": -1}
        except ValueError:
            header = {"size": -1}
        graph = bytes(plan[12 + length :])
        if len(graph) != header["size"]:
            self._logger.log(
                1,
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.size == expectedSize failed.Size mismatch)",
            )
            return None
        return self.fake.module.ICudaEngine(self, graph, header)


class CudaEngine:
    fake: FakeTensorRT

    def __init__(self, runtime: Runtime, graph: bytes, header: dict) -> None:
        self._runtime, self._graph, self._header = weakref.ref(runtime), graph, header
        self._session = _session(graph)
        self._io = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._weights = not header["stripped"]
        self.fake.live["engine"].add(self)
        violations = self.fake.gpu.violations
        weakref.finalize(
            runtime, _outlives, weakref.ref(self), "the runtime went before its engine", violations
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def device_memory_size_v2(self) -> int:
        return self.fake.context_bytes

    @property
    def device_memory_size(self) -> int:
        return self.fake.context_bytes

    def get_tensor_name(self, index: int) -> str:
        return self._io[index].name

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self._io if tensor.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
        return self.fake.module.DataType.__members__[names[self._tensor(name).type]]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {tensor.name for tensor in self._session.get_inputs()}
        return getattr(self.fake.module.TensorIOMode, "INPUT" if name in inputs else "OUTPUT")

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(size, *self.get_tensor_shape(name)[1:]) for size in self._header["batch"]]

    def create_runtime_config(self) -> Any:
        return self.fake.module.IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        gpu = self.fake.gpu
        gpu.need_context("create_execution_context")
        managed = runtime_config is not None and runtime_config._strategy == _USER_MANAGED
        if self.fake.refuse_context and self.fake.refuse_context.pop(0):
            self._runtime()._logger.log(
                1, "ICudaEngine::createExecutionContext: Error Code 1: Cuda Runtime (initialization error)"
            )
            return None
        if not managed and self.fake.context_bytes > gpu.driver.mem_get_info()[0]:
            self._runtime()._logger.log(
                1,
                "ICudaEngine::createExecutionContext: Error Code 2: OutOfMemory (Requested size was too much)",
            )
            return None
        return self.fake.module.IExecutionContext(self, runtime_config)

    def create_engine_inspector(self) -> Any:
        return self.fake.module.EngineInspector()


class ExecutionContext:
    fake: FakeTensorRT

    def __init__(self, engine: CudaEngine, config: Any) -> None:
        self._engine, self._config = weakref.ref(engine), config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._activations: dict[str, np.ndarray] = {}
        self._warm = False
        self._managed = config is not None and config._strategy == _USER_MANAGED
        self._memory: int | None = None
        self.profiler: Any = None
        self.fake.live["context"].add(self)
        weakref.finalize(
            engine,
            _outlives,
            weakref.ref(self),
            "the engine went before its context",
            self.fake.gpu.violations,
        )
        if config is None or not config._warm:
            self.fake.compiled += 1
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = engine.get_tensor_shape(name)
            if -1 not in shape:
                self._shapes[name] = shape

    def _alive(self) -> CudaEngine:
        engine = self._engine()
        if engine is None:
            raise MisuseError("a context was used after its engine had gone")
        return engine

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._alive().get_tensor_profile_shape(name, 0)
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return False
        self._warm = self._warm and self._shapes.get(name) == tuple(shape)
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._alive()
        self._addresses[name] = int(memory)
        return int(memory) % 256 == 0

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._managed:
            raise MisuseError("memory was given to a context that has its own")
        if int(memory) % 256 or size < self.fake.context_bytes:
            raise MisuseError(f"{size} bytes at {int(memory):#x} are not what the context needs")
        self._memory = int(memory)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self._alive().get_tensor_shape(name)
        if -1 not in shape:
            return shape
        batches = {s[0] for s in self._shapes.values()}
        return (batches.pop(), *shape[1:]) if batches else shape

    def is_stream_capturable(self, stream: int) -> bool:
        return self.fake.capturable and self._managed

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, gpu = self._alive(), self.fake.gpu
        gpu.need_context("execute_async_v3")
        if stream_handle not in gpu.streams:
            raise MisuseError(f"stream {stream_handle:#x} does not exist")
        stream = gpu.streams[stream_handle]
        if any(
            other is not stream and getattr(other, "runs", None) == id(self) and other.pending
            for other in list(gpu.streams.values())
        ):
            raise MisuseError("one context was enqueued on two streams at once")
        stream.runs = id(self)
        if self._managed and self.fake.context_bytes and self._memory is None:
            raise MisuseError("a context was run that was given no memory")
        if self._memory is not None:
            gpu.memory_at(self._memory, self.fake.context_bytes, "the memory of a context")
        if stream.captured is not None and not self._warm:
            stream.invalid = True
            return False
        if stream.captured is not None and self._config is not None and not self._config._eager:
            gpu.violations.append("kernels were captured that others are being compiled for")
        views = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if name not in self._addresses:
                raise MisuseError(f"no address was set for {name}")
            shape = self.get_tensor_shape(name)
            if -1 in shape:
                raise MisuseError(f"no shape was set for {name}")
            dtype = np.dtype(_DTYPES[engine.get_tensor_dtype(name).name])
            count = int(np.prod(shape)) * dtype.itemsize
            gpu.memory_at(self._addresses[name], count, f"tensor {name}")
            views[name] = (self._addresses[name], count, dtype, shape)
        self.fake.addresses_seen.append(dict(self._addresses))
        self.fake.executions += 1
        self._warm = True
        if not engine._weights:
            raise MisuseError("an engine without weights was run before it was refitted")
        me, session = weakref.ref(self), engine._session

        def alive() -> ExecutionContext:
            context = me()
            if context is None:
                raise MisuseError("a context went while its work was pending")
            return context

        # two kernels with the context's own memory between: two runs of one context side by side spoil each other's
        def read() -> None:
            alive()._activations = {
                node.name: _view(gpu, *views[node.name]).copy() for node in session.get_inputs()
            }

        def compute() -> None:
            found = session.run(None, alive()._activations)
            for node, value in zip(session.get_outputs(), found, strict=True):
                _view(gpu, *views[node.name])[...] = value

        stream.enqueue(read)
        stream.enqueue(compute)
        if self.profiler is not None:
            self.profiler.report_layer_time("whole graph", 1.5)
        return True


def _view(gpu: FakeGpu, address: int, count: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return gpu.memory_at(address, count, "a tensor").view(dtype).reshape(shape)


def _outlives(ref: weakref.ref, text: str, violations: list[str]) -> None:
    if ref() is not None:
        violations.append(text)
