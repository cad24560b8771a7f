"""What OpenVINO's products of 16 and of 8 bits are on this CPU, found by multiplying: its list of types is the CPU's, whatever oneDNN may use.

oneDNN can be told to leave instructions alone (ONEDNN_MAX_CPU_ISA,
https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html). Without those for bfloat16 it emulates it, many times slower than
float32; without VNNI it adds two products of 8 bits in 16, which saturates
(https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

_INPUTS, _OUTPUTS, _ROWS = 64, 16, 8
_UNSIGNED, _SIGNED = 255, 127  # the largest codes: two products of them are beyond 16 bits


@lru_cache(maxsize=1)
def multiplies_bfloat16(ov: ModuleType) -> bool:
    """Whether a product that is to be inferred in bfloat16 gets a kernel with instructions for it."""
    import numpy as np
    from openvino import opset13 as ops

    images = ops.parameter([_ROWS, _INPUTS], ov.Type.f32)
    weight = ops.constant(np.ones((_OUTPUTS, _INPUTS), np.float32))
    try:
        compiled = _compile(ov, ops.matmul(images, weight, False, True), images, ov.Type.bf16)
        kernels = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    except RuntimeError:  # instructions too old for any
        return False
    names = [str(kernel["primitiveType"].value) for kernel in kernels if "primitiveType" in kernel]
    # "brgemm_avx512_amx_bf16"; what emulates is "jit_gemm_bf16"
    return any(name.startswith("brgemm") and name.endswith("bf16") for name in names)


@lru_cache(maxsize=1)
def int8_saturates(ov: ModuleType) -> bool:
    """Whether a product of 8 bits loses what two of its terms have beyond 16 bits."""
    import numpy as np
    from openvino import opset13 as ops

    images = ops.parameter([_ROWS, _INPUTS], ov.Type.f32)
    ends = (np.float32(0), np.float32(_UNSIGNED))
    codes = ops.fake_quantize(images, *ends, *ends, _UNSIGNED + 1)
    weight = ops.convert(ops.constant(np.full((_OUTPUTS, _INPUTS), _SIGNED, np.int8)), "f32")
    scaled = ops.multiply(weight, ops.constant(np.ones((_OUTPUTS, 1), np.float32)))
    compiled = _compile(ov, ops.matmul(codes, scaled, False, True), images, ov.Type.f32)
    sums = compiled({0: np.full((_ROWS, _INPUTS), _UNSIGNED, np.float32)})[0]
    return bool((sums != _INPUTS * _UNSIGNED * _SIGNED).any())


def _compile(ov: ModuleType, product: Any, images: Any, precision: Any) -> Any:
    return ov.Core().compile_model(
        ov.Model([product], [images], "product"), "CPU", {ov.properties.hint.inference_precision: precision}
    )
