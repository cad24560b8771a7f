"""How long the kernels of an engine would take by roofline (Williams, Waterman and Patterson, 2009): an estimate, and no measurement.

Each kernel takes the longer of its operations at the GPU's dense peak and of its bytes at the full bandwidth of its memory, and a launch. What
keeps real kernels from that is left out: products too small for the GPU, caches, clocks that fall under load, one kernel waiting for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.errors import EngineInputError
from engines.kernels import Kernel, Operand, Role

# A kernel in a CUDA graph, on a V100: 3.4 us where the kernel alone takes 2.9 (https://developer.nvidia.com/blog/cuda-graphs/)
LAUNCH_SECONDS = 0.5e-6
_BYTES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class GpuRates:
    """What a GPU can do at most, by NVIDIA's data sheets.

    Attributes:
        title: its whole name.
        capability: its compute capability.
        tera: dense operations in 1e12 a second by the type of the factors, two a multiply-accumulate, sums in 32 bits; float32 without TF32.
        gigabytes: that its memory moves, in 1e9 bytes a second.
        source: where NVIDIA says so.
    """

    title: str
    capability: str
    tera: Mapping[str, float]
    gigabytes: float
    source: str


def _tera(float32: float, half: float, int8: float, fp8: float | None) -> dict[str, float]:
    rates = {"float32": float32, "float16": half, "bfloat16": half, "int8": int8}
    return rates if fp8 is None else {**rates, "float8_e4m3fn": fp8}


# Data sheets give rates with sparsity, twice the dense ones, for H100 and L4.
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
GPUS: Mapping[str, GpuRates] = {
    "a100": GpuRates("A100 80GB SXM", "sm80", _tera(19.5, 312, 624, None), 2039, _A100),
    "a100-40gb": GpuRates("A100 40GB SXM", "sm80", _tera(19.5, 312, 624, None), 1555, _A100),
    "h100": GpuRates("H100 SXM", "sm90", _tera(66.9, 989.4, 1978.9, 1978.9), 3350, "https://www.nvidia.com/en-us/data-center/h100/"),
    "l4": GpuRates("L4", "sm89", _tera(30.3, 121, 242.5, 242.5), 300, "https://www.nvidia.com/en-us/data-center/l4/"),
    "rtx4090": GpuRates("GeForce RTX 4090", "sm89", _tera(82.6, 165.2, 660.6, 330.3), 1008, _ADA),
    "rtx5090": GpuRates("GeForce RTX 5090", "sm120", _tera(104.8, 209.5, 838, 419), 1792, _BLACKWELL),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """The milliseconds of a run, by roofline.

    Attributes:
        gpu: its name in `GPUS`.
        ms: of all kernels.
        products_ms, attention_ms, other_ms: of those by what they are for, without launches. launches_ms: of all launches.
        kernel_us: of each kernel, its launch with it.
        untold: share of the graph's multiply-accumulates that no kernel is told to compute, or in no type that is known; they are left out.
    """

    gpu: str
    ms: float
    products_ms: float
    attention_ms: float
    other_ms: float
    launches_ms: float
    kernel_us: tuple[float, ...]
    untold: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "kernel_us": list(self.kernel_us)}


def lacks(kernels: Sequence[Kernel], gpu: str) -> str | None:
    """Return a type that kernels multiply and a GPU does not have, by its usual name; None where it has all."""
    rates = GPUS[gpu].tera
    for kernel in kernels:
        if kernel.multiplies and kernel.computes_in not in (*rates, ""):
            return "FP8" if kernel.computes_in == "float8_e4m3fn" else kernel.computes_in
    return None


def estimate(kernels: Sequence[Kernel], macs: Mapping[str, int], gpu: str) -> Estimate:
    """Estimate a run of an engine.

    Args:
        kernels: of the engine, all with the shapes that they run on.
        macs: multiply-accumulates of each product of its graph, by ONNX node.
        gpu: a name of `GPUS`.

    Raises:
        EngineInputError: a kernel's shapes or types are not known, or the GPU multiplies no such type.
    """
    rates = GPUS[gpu]
    if missing := lacks(kernels, gpu):
        raise EngineInputError(f"{rates.title} ({rates.capability}) has no {missing}")
    computed, placed = _operations(kernels, macs)
    seconds = {Role.PRODUCT: 0.0, Role.ATTENTION: 0.0, Role.OTHER: 0.0}
    each = []
    for kernel, operations in zip(kernels, computed, strict=True):
        rate = rates.tera.get(kernel.computes_in)
        compute = operations / (rate * 1e12) if operations and rate else 0.0
        took = max(compute, _bytes(kernel) / (rates.gigabytes * 1e9))
        seconds[kernel.role if kernel.multiplies else Role.OTHER] += took
        each.append(took + LAUNCH_SECONDS)
    total = sum(macs.values())
    return Estimate(
        gpu=gpu,
        ms=1e3 * sum(each),
        products_ms=1e3 * seconds[Role.PRODUCT],
        attention_ms=1e3 * seconds[Role.ATTENTION],
        other_ms=1e3 * seconds[Role.OTHER],
        launches_ms=1e3 * LAUNCH_SECONDS * len(each),
        kernel_us=tuple(1e6 * took for took in each),
        untold=1 - placed / total if total else 0.0,
    )


def _operations(kernels: Sequence[Kernel], macs: Mapping[str, int]) -> tuple[list[int], int]:
    """Return the operations of each kernel, and how many multiply-accumulates found one whose type is known.

    A kernel may name a product that another computes, to scale what comes of it: the first of a kind that multiplies has it, and only where there
    is none, one that computes attention.
    """
    counts, left = [0] * len(kernels), dict(macs)
    for role in (Role.PRODUCT, Role.ATTENTION):
        for place, kernel in enumerate(kernels):
            if kernel.role is role and kernel.computes_in:
                counts[place] += 2 * sum(left.pop(node, 0) for node in kernel.nodes)
    return counts, sum(macs.values()) - sum(left.values())


def _bytes(kernel: Kernel) -> int:
    return sum(_size(operand, kernel) for operand in (*kernel.reads, *kernel.writes))


def _size(operand: Operand, kernel: Kernel) -> int:
    if any(size < 0 for size in operand.shape):
        raise EngineInputError(
            f"the shapes of kernel {kernel.name} are open ({operand}); build with a fixed batch"
        )
    if operand.dtype not in _BYTES:
        raise EngineInputError(f"the types of kernel {kernel.name} are not known ({operand}); build it again")
    return math.prod(operand.shape) * _BYTES[operand.dtype]
