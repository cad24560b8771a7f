"""What this machine and this installation can do: for every engine whether it can build and run, and the remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ON_CPUS = ("fp32", "bf16", "int8")  # what a CPU may multiply


def runtimes() -> tuple[str, ...]:
    """The packages of all engines, installed or not."""
    from engines.registry import KINDS, engine_class

    return tuple(sorted(engine_class(kind).package for kind in KINDS))


def packages() -> tuple[str, ...]:
    """Every package that a build depends on, the runtimes of all engines among them."""
    return ("sit-deploy", "torch", "timm", "onnx", "onnxscript", *runtimes(), "numpy", "pillow")


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package a build depends on, None where it is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages():
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def last_tested() -> dict[str, str]:
    """Return the versions that the tests last passed with, of those of `packages` that they have; constraints.txt has them all."""
    lines = (Path(__file__).parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition(";")[0].strip().split("==") for line in lines if "==" in line)
    return {name: version for name, version in pinned if name in packages()}


def newer_than_tested(installed: Mapping[str, str | None], pinned: Mapping[str, str]) -> list[str]:
    """Return the packages of which a newer release is installed than the tests passed with; a build of it (`+cu130`) is the same release.

    Args:
        installed: versions by package, None where it is not installed.
        pinned: versions that were tested, by package.
    """
    from packaging.version import InvalidVersion, Version

    def release(version: str) -> Version:
        return Version(Version(version).public)

    found = []
    for package, version in pinned.items():
        with contextlib.suppress(InvalidVersion):  # of somebody's own build: nobody can say
            if release(installed.get(package) or "0") > release(version):
                found.append(package)
    return found


def examine() -> dict[str, Any]:
    """Return engines (what each can do here and the remedy), GPUs, versions, CPU, memory and disk, as plain types.

    `tested` has the versions that the tests last passed with, and `newer_than_tested` the packages that are newer here.

    Of each GPU, `engine` is the first kind that runs here and serves it, in the order of `--engine auto`; None where none does. Of each
    engine that runs on this CPU, `kernels` has by precision why there are none for it here, None where there are; FP16, which CPUs
    compute in FP32, is left out.
    """
    from dataclasses import asdict

    import engines
    from engines import cpu
    from engines.gpus import find_gpus
    from engines.registry import engine_class
    from engines.timing import machine

    installed, pinned = versions(), last_tested()
    gpus, answers = find_gpus(), engines.support()
    running = [engines.get(answer.kind) for answer in answers if answer.can_run]

    def serving(capability: str) -> str | None:
        return next((engine.kind for engine in running if engine.serves(capability)), None)

    return {
        "engines": [{**asdict(answer), "note": engine_class(answer.kind).caveat} for answer in answers],
        "kernels": {
            engine.kind: {one: engine.lacks(one) for one in engine.precisions if one in _ON_CPUS}
            for engine in running
            if engine.on_cpu
        },
        "gpu": {
            "gpus": [{**asdict(gpu), "engine": serving(gpu.compute_capability)} for gpu in gpus.gpus],
            "reason": gpus.reason,
        },
        "machine": {
            **asdict(machine()),
            "instructions": list(cpu.instructions()),
            "instructions_limit": cpu.onednn_limit(),
            "memory_bytes": _memory(),
            "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        },
        "versions": installed,
        "tested": pinned,
        "newer_than_tested": newer_than_tested(installed, pinned),
    }


def _memory() -> int | None:
    if sys.platform != "linux":
        return None
    (line,) = [x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal:")]
    return int(line.split()[1]) * 1024
