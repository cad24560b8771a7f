"""Is there an NVIDIA GPU? Asked of the driver alone, through ctypes.

TensorRT must not be asked: without a device its runtime hands back garbage objects.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute values of the CUDA driver API.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One device, in the driver's order; `compute_capability` is spelt "sm80"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class GpuStatus:
    """The devices a process may use; where there are none, `reason` says why in a few words."""

    gpus: tuple[Gpu, ...]
    reason: str

    def __bool__(self) -> bool:
        return bool(self.gpus)


def find_gpus() -> GpuStatus:
    """Ask the CUDA driver for its devices (CUDA_VISIBLE_DEVICES is respected)."""
    cuda, reason = _driver()
    if cuda is None:
        return GpuStatus((), reason)
    count = ctypes.c_int(0)
    status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return GpuStatus((), f"the NVIDIA driver reports {_error_name(cuda, status)}")
    gpus = tuple(_describe(cuda, ordinal) for ordinal in range(count.value))
    return GpuStatus(gpus, "" if gpus else "the NVIDIA driver lists no device")


_TELEMETRY = {
    "name": str,
    "driver_version": str,
    "clocks.sm": float,
    "clocks.max.sm": float,
    "clocks.mem": float,
    "power.draw": float,
    "power.limit": float,
    "temperature.gpu": float,
    "memory.total": float,
}


def telemetry(number: int = 0) -> dict[str, str | float | None] | None:
    """What a GPU is doing now, by nvidia-smi; None where that is missing.

    Keys are nvidia-smi's with dots turned to underscores: clocks in MHz, power in watts, temperature in °C, memory in MiB;
    a value that the device does not tell is None. `number` counts as CUDA does, and as `find_gpus`.
    """
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_TELEMETRY)}",
        "--format=csv,noheader,nounits",
        f"--id={_place_on_the_bus(number) or _number_by_environment(number)}",
    ]
    try:
        answer = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in answer.strip().split(",")]
    if len(values) != len(_TELEMETRY):
        return None
    return {
        key.replace(".", "_"): _reading(kind, value)
        for (key, kind), value in zip(_TELEMETRY.items(), values, strict=True)
    }


def device_number(device: str | None) -> int:
    """Return which of the devices of CUDA a name is of: "cuda:1" is 1, "cuda" and None are the first."""
    return int((device or "cuda").partition(":")[2] or 0)


def telemetry_of(device: str) -> dict[str, str | float | None] | None:
    """Return what a device ("cuda", "cuda:1") is doing, as `telemetry`; None of a CPU."""
    return telemetry(device_number(device)) if device.startswith("cuda") else None


def _reading(kind: type, text: str) -> Any:
    """Return a value of nvidia-smi's; None of a number that the device does not tell: "[N/A]"."""
    if kind is str:
        return text
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _place_on_the_bus(number: int) -> str | None:
    """Return where a device of CUDA's is on the PCI bus, by which nvidia-smi knows it; None where the driver does not tell.

    CUDA puts the fastest device first, nvidia-smi the first of the bus, and it counts those too that CUDA_VISIBLE_DEVICES hides. An instance
    of MIG is at the place of its GPU.
    """
    cuda, _ = _driver()
    ask = getattr(cuda, "cuDeviceGetPCIBusId", None)
    if ask is None:
        return None
    device, place = ctypes.c_int(), ctypes.create_string_buffer(32)
    if cuda.cuDeviceGet(ctypes.byref(device), number) != 0 or ask(place, len(place), device) != 0:
        return None
    return place.value.decode(errors="replace")


def _number_by_environment(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[number].strip() if number < len(visible) and visible[number].strip() else str(number)


def _driver() -> tuple[Any, str]:
    """Return the driver's library, started; or None, and why in a few words."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None, f"no NVIDIA driver ({library} not found)"
    status = cuda.cuInit(0)
    return (cuda, "") if status == 0 else (None, f"the NVIDIA driver reports {_error_name(cuda, status)}")


def _describe(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}")


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(name)) != 0 or name.value is None:
        return f"error {status}"
    return name.value.decode()
