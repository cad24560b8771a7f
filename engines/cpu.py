"""What this CPU is, as far as it changes numbers or belongs in a report."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_INFORMATION = Path("/proc/cpuinfo")
_TIMES = Path("/proc/stat")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_SHORTEST_LOOK = 0.2  # CPU seconds: the system counts them in hundredths
_IDLE = 0.1  # share of the CPUs that is idle where nobody had to wait
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_NO_LIMIT = ("ALL", "DEFAULT")
_INSTRUCTIONS = {
    *(
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "amx_fp16",
    ),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
}
_X86 = {"x86_64", "amd64", "i386", "i686"}


def model_name() -> str:
    """The CPU's name, or its architecture where the system tells no more."""
    return _field("model name") or platform.processor() or platform.machine()


def usable_cpus() -> tuple[int, ...] | None:
    """The CPUs that this process may run on; None where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_count() -> int:
    """How many CPUs this process may keep busy: those it may run on, or fewer where a container's limit says so."""
    count = len(usable_cpus() or range(os.cpu_count() or 1))
    limit = quota()
    return count if limit is None else max(1, min(count, math.ceil(limit)))


def limited() -> bool:
    """Whether this process may keep fewer CPUs busy than the machine has: by affinity, cpusets or the time that a container has.

    A runtime that counts the machine's would start more threads than can run, and they wait for one another.
    """
    return quota() is not None or cpu_count() < (os.cpu_count() or 1)


def throttled_to() -> int | None:
    """How many CPUs' time a container has, where that is less than of the CPUs that it may run on; None where nobody limits it so."""
    limit, allowed = quota(), len(usable_cpus() or range(os.cpu_count() or 1))
    return cpu_count() if limit is not None and limit < allowed else None


def quota() -> float | None:
    """How many CPUs' time the control groups of this process leave it, as containers are limited; None where they do not.

    Of version 2 (cpu.max) and 1 (cpu.cfs_quota_us), here and in every group above:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    try:
        rows = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return None
    found: list[float] = []
    for _, controllers, place in (row for row in rows if len(row) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # within a container a path may be the host's, and then its own group is the root
        roots = (_CGROUPS / controllers, _CGROUPS / "cpu") if controllers else (_CGROUPS,)
        parts = [] if ".." in place else place.strip("/").split("/")
        folders = {root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts) + 1)}
        found += filter(None, map(_limit_of, folders))
    return min(found, default=None)


def _limit_of(group: Path) -> float | None:
    """The CPUs' time of a control group, None where it has no limit or is not there."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            share, period = " ".join((group / name).read_text() for name in names).split()
            if share != "max" and int(share) > 0 < int(period):
                return int(share) / int(period)
        except (OSError, ValueError):
            continue
    return None


def int8_saturates() -> bool:
    """Whether ONNX Runtime's default INT8 kernels may saturate here.

    x86 without VNNI multiplies uint8 by int8 with 16-bit sums that clip. Where the system does not
    tell, an x86 CPU is taken to be one of those: that costs speed, the other mistake accuracy.
    """
    if platform.machine().lower() not in _X86:
        return False
    return not {"avx_vnni", "avx512_vnni"} & set(_field("flags").split())


def onednn_limit() -> str | None:
    """What keeps oneDNN, OpenVINO's library of kernels, from instructions that the CPU has, as it is set in the environment.

    https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
    """
    for name in _LIMITS:  # the first that is set counts
        if value := os.environ.get(name):
            return None if value.upper() in _NO_LIMIT else f"{name}={value}"
    return None


def instructions() -> tuple[str, ...]:
    """Which instructions that matrices are multiplied by the CPU has, as the system names them; none where it does not tell."""
    flags = set(f"{_field('flags')} {_field('Features')}".split())
    return tuple(sorted(flags & _INSTRUCTIONS))


@dataclass(frozen=True)
class Use:
    """Seconds, counted from some moment on: of CPUs that this process used, that anybody used, and that passed on them."""

    own: float
    busy: float
    whole: float


def use(cpus: Iterable[int]) -> Use | None:
    """Return the use of some CPUs until now; None where the system does not tell."""
    names = {f"cpu{number}" for number in cpus}
    try:
        rows = [line.split() for line in _TIMES.read_text().splitlines()]
        ticks = [[int(value) for value in row[1:9]] for row in rows if row and row[0] in names]
        second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    # user, nice, system, idle, iowait, irq, softirq, and what a hypervisor gave to others
    if len(ticks) != len(names) or not all(len(row) == 8 for row in ticks):
        return None
    whole = sum(map(sum, ticks))
    busy = whole - sum(row[3] + row[4] for row in ticks)
    return Use(time.process_time(), busy / second, whole / second)


def others_share(before: Use | None, after: Use | None) -> float | None:
    """Return the share of the CPUs that other programs took between two looks; None where it cannot be told.

    Where enough of them were idle nobody took them from this process: then it is 0.
    """
    if before is None or after is None or after.whole - before.whole < _SHORTEST_LOOK:
        return None
    whole, busy = after.whole - before.whole, after.busy - before.busy
    return 0.0 if busy < (1 - _IDLE) * whole else max(0.0, busy - (after.own - before.own)) / whole


def shortest_slice() -> float:
    """Return the seconds that a look at the CPUs of this process must last for `others_share` to tell something, with some room."""
    return 1.2 * _SHORTEST_LOOK / len(usable_cpus() or range(os.cpu_count() or 1))


def _field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo, or ""."""
    if _INFORMATION.is_file():
        for line in _INFORMATION.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""
