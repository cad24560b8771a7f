"""What this CPU is, as far as it changes numbers or belongs in a report."""

from __future__ import annotations

import platform
from pathlib import Path

_INFORMATION = Path("/proc/cpuinfo")
_X86 = {"x86_64", "amd64", "i386", "i686"}


def model_name() -> str:
    """The CPU's name, or its architecture where the system tells no more."""
    return _field("model name") or platform.processor() or platform.machine()


def int8_saturates() -> bool:
    """Whether ONNX Runtime's default INT8 kernels may saturate here.

    x86 without VNNI multiplies uint8 by int8 with 16-bit sums that clip. Where the system does not
    tell, an x86 CPU is taken to be one of those: that costs speed, the other mistake accuracy.
    """
    if platform.machine().lower() not in _X86:
        return False
    return not {"avx_vnni", "avx512_vnni"} & set(_field("flags").split())


def _field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo, or ""."""
    if _INFORMATION.is_file():
        for line in _INFORMATION.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""
