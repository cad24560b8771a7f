"""What a TensorRT library offers, asked of the library itself: no version number is ever compared.

docs/gpu.md has the table of what each release answers; tests hold it against recorded releases and the installed one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Features:
    """The answers of one library.

    Attributes:
        strong_typing: networks keep the types of the graph; otherwise types are asked for layer by layer.
        typing_flag: strong typing has to be asked for; without it the library knows nothing else.
        explicit_batch_flag: networks have an implicit batch dimension unless a flag says otherwise.
        normalization: LayerNormalization is one layer, computed in FP32.
        named_tensors: inputs and outputs have addresses by name, and `execute_async_v3` runs them.
        bf16, fp8: types that tensors can have.
        progress_monitor: a build tells how far it is, and can be cancelled.
        compute_capabilities: engines are built for named GPUs, here or not.
        hardware_levels: levels of hardware compatibility, in lower case, "none" left out.
        version_compatible: engines can be made to run on other releases.
        strip_plan: engines can leave their weights out.
        refit: weights of an engine can be replaced; `onnx_refit`: from an ONNX file, in one call.
        timing_cache_keys: a timing cache can tell its entries.
        profiling_detail: the engine can be made to tell each layer's type and tactic.
        engine_validity: a plan can be judged before it is opened.
        runtime_cache: kernels that are compiled at the first run can be kept for the next start.
        capture_query: a context says whether a CUDA graph can be captured of it.
        user_allocation: an engine can be built so that its contexts allocate nothing while they run.
        eager_kernels: a context can be told to compile the kernels of a new shape before it runs them.
        attention: attention is one layer, which its parser makes of ONNX's Attention.
    """

    strong_typing: bool
    typing_flag: bool
    explicit_batch_flag: bool
    normalization: bool
    named_tensors: bool
    bf16: bool
    fp8: bool
    progress_monitor: bool
    compute_capabilities: bool
    hardware_levels: tuple[str, ...]
    version_compatible: bool
    strip_plan: bool
    refit: bool
    onnx_refit: bool
    timing_cache_keys: bool
    profiling_detail: bool
    engine_validity: bool
    runtime_cache: bool
    capture_query: bool
    user_allocation: bool
    eager_kernels: bool
    attention: bool

    @classmethod
    def of(cls, trt: ModuleType) -> Features:
        """Ask an imported library."""

        def has(*path: str) -> bool:
            owner: Any = trt
            for name in path:
                if not hasattr(owner, name):
                    return False
                owner = getattr(owner, name)
            return True

        typing_flag = has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        levels = trt.HardwareCompatibilityLevel.__members__ if has("HardwareCompatibilityLevel") else ()
        return cls(
            # A library that still has the builder flags of weak typing, and no flag for the strong one, is weakly typed.
            strong_typing=typing_flag or not has("BuilderFlag", "FP16"),
            typing_flag=typing_flag,
            explicit_batch_flag=has("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
            normalization=has("INetworkDefinition", "add_normalization"),
            named_tensors=has("IExecutionContext", "set_tensor_address")
            and has("IExecutionContext", "execute_async_v3"),
            bf16=has("DataType", "BF16"),
            fp8=has("DataType", "FP8"),
            progress_monitor=has("IProgressMonitor") and has("IBuilderConfig", "progress_monitor"),
            compute_capabilities=has("IBuilderConfig", "set_compute_capability"),
            hardware_levels=tuple(name.lower() for name in levels if name != "NONE"),
            version_compatible=has("BuilderFlag", "VERSION_COMPATIBLE"),
            strip_plan=has("BuilderFlag", "STRIP_PLAN"),
            refit=has("BuilderFlag", "REFIT"),
            onnx_refit=has("OnnxParserRefitter", "refit_from_file"),
            timing_cache_keys=has("ITimingCache", "queryKeys"),
            profiling_detail=has("ProfilingVerbosity", "DETAILED")
            and has("ICudaEngine", "create_engine_inspector"),
            engine_validity=has("Runtime", "get_engine_validity"),
            runtime_cache=has("IRuntimeConfig", "create_runtime_cache"),
            capture_query=has("IExecutionContext", "is_stream_capturable"),
            user_allocation=has("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
            eager_kernels=has("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
            attention=has("INetworkDefinition", "add_attention"),
        )

    @property
    def unsupported(self) -> str | None:
        """Why nothing here can use the library, in a few words; None where it can be used."""
        if not self.named_tensors:
            return "has no execute_async_v3"
        if not self.normalization:
            return "has no LayerNormalization"
        return None

    def rows(self) -> dict[str, str]:
        """Each answer spelt for a table: "yes", "no", or the names."""
        spelt = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                spelt[field.name] = ", ".join(value) or "no"
            else:
                spelt[field.name] = "yes" if value else "no"
        return spelt
