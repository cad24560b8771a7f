"""Parts of `fake_tensorrt` that compute nothing: its inspector, runtime configuration and cache, and what refits an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.helpers.fake_tensorrt import CudaEngine, FakeTensorRT


class EngineInspector:
    fake: FakeTensorRT

    def __init__(self) -> None:
        self.execution_context: Any = None

    def get_engine_information(self, format: Any) -> str:
        return self.fake.inspector


class RuntimeConfig:
    fake: FakeTensorRT
    dynamic_shapes_kernel_specialization_strategy: Any = 0

    def __init__(self) -> None:
        self._cache: Any = None
        self._strategy = 0

    @property
    def _eager(self) -> bool:
        return int(self.dynamic_shapes_kernel_specialization_strategy) == 1

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = int(strategy)

    @property
    def _warm(self) -> bool:
        return self._cache is not None and self._cache._loaded

    def create_runtime_cache(self) -> Any:
        return self.fake.module.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


class RuntimeCache:
    fake: FakeTensorRT

    def __init__(self) -> None:
        self._loaded = False

    def serialize(self) -> bytes:
        return b"kernels for " + self.fake.gpu.name.encode()

    def deserialize(self, blob: bytes) -> bool:
        self.fake.gpu.need_context("IRuntimeCache.deserialize")
        self._loaded = bytes(blob) == self.serialize()
        return self._loaded


class Refitter:
    fake: FakeTensorRT

    def __init__(self, engine: CudaEngine, logger: Any) -> None:
        self._engine, self._logger, self._ready = engine, logger, False

    def refit_cuda_engine(self) -> bool:
        if self._ready:
            self._engine._weights = True
        return self._ready


class OnnxParserRefitter:
    fake: FakeTensorRT

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter, self._logger = refitter, logger

    def refit_from_file(self, model: str) -> bool:
        self._refitter._ready = Path(model).read_bytes() == self._refitter._engine._graph
        if not self._refitter._ready:
            self._logger.log(1, "Failed to refit weights: names do not match")
        return self._refitter._ready
