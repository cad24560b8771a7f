"""OpenVINO's names of types by numpy's."""

from __future__ import annotations

from typing import Any

_NAMES = {
    **{"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "boolean": "bool"},
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


def numpy_name(dtype: Any) -> str:
    """Return numpy's name of a type, or of OpenVINO's name of it; "" for one that is not known."""
    return _NAMES.get(dtype if isinstance(dtype, str) else dtype.get_type_name(), "")
