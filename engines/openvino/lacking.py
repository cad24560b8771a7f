"""What this CPU lacks to multiply a precision on OpenVINO: asked before a build, and by the build itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.cpu import onednn_limit
from engines.openvino import bfloat16, instructions
from engines.openvino.library import SATURATES, TITLE

if TYPE_CHECKING:
    from types import ModuleType


def lacking(ov: ModuleType, precision: str) -> str | None:
    """Return why there are no kernels for a precision, as part of a sentence; None where there are."""
    limit = onednn_limit()
    unset = f" (with {limit} set; unset it where the CPU has more)" if limit else ""
    if precision == "int8":
        return SATURATES + unset if instructions.int8_saturates(ov) else None
    if precision != "bf16" or bfloat16.has_bfloat16(ov):
        return None
    return (
        f"this CPU does not multiply bf16 ({TITLE} lists {bfloat16.capabilities(ov)}), and emulating it is slower than fp32"
        f"{unset}"
    )
