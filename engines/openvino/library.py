"""OpenVINO itself: how it is imported, what a model is compiled with, and its messages in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..cpu import throttled_to
from ..errors import EngineError
from ..imports import import_runtime

if TYPE_CHECKING:
    from types import ModuleType

TITLE = "OpenVINO"
SATURATES = "OpenVINO adds products of 8 bits in 16 on a CPU without VNNI, which saturates"


def import_openvino() -> ModuleType:
    """Import the package.

    Raises:
        EngineNotInstalledError: it is missing, or broken.
    """
    return import_runtime("openvino", TITLE)


def version_of(ov: ModuleType) -> str:
    """The release, without the number of its build."""
    return str(ov.__version__.split("-")[0])


def for_throughput(ov: ModuleType, streams: int | None) -> dict[Any, Any]:
    """What makes it run several requests at a time, beside `settings`: each stream has threads and a request of its own.

    Args:
        ov: the package.
        streams: how many; None leaves the choice to it, by what the model computes and the CPUs have.
    """
    hint = ov.properties.hint
    more = {hint.performance_mode: hint.PerformanceMode.THROUGHPUT}
    return more if streams is None else {**more, ov.properties.num_streams: streams}


def settings(ov: ModuleType, threads: int | None, *, low: bool = False) -> dict[Any, Any]:
    """Latency first, and float32 as it is written: on some CPUs it would round to bfloat16 by itself.

    Args:
        ov: the package.
        threads: CPU threads; None leaves the choice to it, but in a container that has the time of fewer CPUs than it sees, which OpenVINO does
            not look for (https://github.com/openvinotoolkit/openvino/issues/37838).
        low: infer in bfloat16 what is written in float32 (`engines.openvino.bfloat16`).
    """
    hint = ov.properties.hint
    settings = {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: ov.Type.bf16 if low else ov.Type.f32,
    }
    if (threads := throttled_to() if threads is None else threads) is not None:
        settings[ov.properties.inference_num_threads] = threads
    return settings


def require_cpu(device: str, error: type[EngineError]) -> None:
    """Refuse every device but the CPU, with that error."""
    if device != "cpu":
        raise error(f"device {device} asked for, but OpenVINO engines run on the CPU here; use device cpu")


def one_line(error: BaseException) -> str:
    """The last sentences of OpenVINO's message, which begins with where in its sources it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    heart = [line for line in lines if not line.startswith(("Exception from", "While validating"))]
    return " ".join(heart or lines or [type(error).__name__])[:400]
