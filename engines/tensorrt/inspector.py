"""The kernels of a TensorRT engine, as its inspector tells them on a GPU: the list that TensorRT-RTX's builder logs without one.

`IEngineInspector` gives JSON (NVIDIA TensorRT documentation, "Engine Inspector"), {"Layers": [...]}, a layer for a kernel where the engine was
built with detailed profiling. What it tells has changed, and all of it is read:

- A tensor's type is in "Format/Datatype" in 8.6 and 10, in "Datatype" with a "Format" beside it in 11.
- Weights are {"Type", "Count"} of a convolution; for a product of Myelin's (gemm, kgen) 10.0 has them among its inputs, later releases of 10 not
  at all, 11 in a list of their own, "Constants". The name of the tactic tells the types that are multiplied: "..._i8f16_i8i32_f32_..." reads int8,
  writes float16 and adds up in int32.
- An input that no layer writes and that is none of the engine's ("Bindings"; in 11 "I/O Tensors") is a constant.
- 8.6 shows all of Myelin's kernels as one layer: nothing can be said of such an engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from engines.errors import EngineError
from engines.kernels import Kernel, Operand, Role, widens, with_products
from engines.tensorrt.layers import MYELIN, node_names, type_name

_DETAILED = "build with --profiling detailed"
# of the plan, and no launches: NVIDIA/TensorRT groups most of them as "misc" (.agents/skills/trt-perf-analysis)
_NO_KERNELS = frozenset(
    {"noop", "constant", "reshape", "shape_call", "signal", "wait", "signal_and_wait", "signal_wait"}
)
_PRODUCT = re.compile(r"conv|corr|gem[mv]|mat(rix)?_?mul|fullyconnected", re.IGNORECASE)
# what is fused may be a product or not
_FUSED = ("fusion", "runtime_fusion")
_PRODUCT_TACTIC = re.compile(r"xmma|gem[mv]|cutlass|conv|fprop", re.IGNORECASE)
_ATTENTION = re.compile(r"^_gem[mv]_mha|fmha")
_FACTORS = (
    ("int8", re.compile(r"_i8i32_|int8x4")),
    ("float8_e4m3fn", re.compile(r"_e4m3f(16|32)_")),
)


def inspected_kernels(text: str, products: Collection[str] = ()) -> tuple[Kernel, ...]:
    """Read the kernels of an engine out of its inspector's answer.

    Args:
        text: of `TensorRTRunner.inspect_layers`.
        products: as of `kernels.read_kernels`.

    Raises:
        EngineError: it does not tell them.
    """
    try:
        answer = json.loads(text)
        layers = answer["Layers"]
        if not all(isinstance(layer, dict) for layer in layers):
            raise EngineError(f"the engine inspector tells names alone; {_DETAILED}")
        if any(layer["LayerType"] == MYELIN for layer in layers):
            raise EngineError("the engine inspector of this release tells many kernels as one layer")
        written = {tensor["Name"] for layer in layers for tensor in layer.get("Outputs") or ()}
        inputs = {name for name in map(_name, _io(answer)) if name}
        kernels = [
            _kernel(layer, written | inputs if inputs else None)
            for layer in layers
            if layer["LayerType"].lower() not in _NO_KERNELS
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}); {_DETAILED}"
        ) from error
    return with_products(kernels, products)


def _io(answer: Mapping[str, Any]) -> list[Any]:
    return answer.get("I/O Tensors") or answer.get("Bindings") or []


def _name(binding: Any) -> str:
    return binding if isinstance(binding, str) else binding["Name"]


def _kernel(layer: Mapping[str, Any], variable: Collection[str] | None) -> Kernel:
    """Read a layer; `variable` are the tensors that are no constants, None where that is not known."""
    reads = [
        _operand(tensor, constant=variable is not None and tensor["Name"] not in variable)
        for tensor in layer.get("Inputs") or ()
    ]
    reads += [_operand(tensor, constant=True) for tensor in layer.get("Constants") or ()]
    for key, value in layer.items():
        if key.endswith(("Weights", "Bias")) and isinstance(value, dict) and value.get("Count"):
            reads.append(Operand(type_name(value["Type"]), (int(value["Count"]),), constant=True))
    tactic = str(layer.get("TacticName") or "")
    kernel = Kernel(
        name=layer["Name"],
        kind=layer["LayerType"],
        reads=tuple(reads),
        writes=tuple(_operand(tensor) for tensor in layer.get("Outputs") or ()),
        nodes=tuple(dict.fromkeys(node_names(layer.get("Metadata") or ""))),
        factors=next((kind for kind, pattern in _FACTORS if pattern.search(tactic)), ""),
    )
    return replace(kernel, role=_role(kernel, tactic))


def _operand(tensor: Mapping[str, Any], *, constant: bool = False) -> Operand:
    spelling = " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype"))
    return Operand(type_name(spelling), tuple(map(int, tensor.get("Dimensions") or ())), constant)


def _role(kernel: Kernel, tactic: str) -> Role:
    if kernel.kind == "kgen":
        names = (kernel.name, tactic)
        if any(map(_ATTENTION.search, names)):
            return Role.ATTENTION
        if any(name.startswith(("_gemm_", "_gemv_")) for name in names):
            return Role.PRODUCT
    elif _PRODUCT.search(kernel.kind) or (kernel.kind in _FUSED and _PRODUCT_TACTIC.search(tactic)):
        return Role.PRODUCT
    return Role.WIDENING if widens(kernel) else Role.OTHER
