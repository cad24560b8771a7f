"""What a bundle is run for, and on how many threads, where nobody says: as it was built."""

from __future__ import annotations

from dataclasses import dataclass

import engines
from engines.cpu import cpu_count
from engines.performance import Performance
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError

MODES = tuple(mode.value for mode in Performance)


def read_performance(performance: str, streams: int | None, device: str | None = None) -> Performance:
    """Return what was asked for.

    Args:
        performance: "latency" or "throughput".
        streams: how many calls run at a time, for throughput alone.
        device: where it is to run.

    Raises:
        InputError: no such mode, or options that contradict each other.
    """
    if performance not in MODES:
        raise InputError(f"performance {performance!r} is not offered; choose {' or '.join(MODES)}")
    mode = Performance(performance)
    if mode is Performance.THROUGHPUT and device not in (None, "cpu"):
        raise InputError(
            f"throughput mode is the CPU's, and device {device} was asked for; leave one of them out"
        )
    if streams is None or mode is Performance.THROUGHPUT:
        return mode
    raise InputError(
        "streams are calls that run at a time, which is throughput; pass --performance throughput with --streams, or leave "
        "--streams out"
    )


def require_several_at_once(bundle: Bundle, kind: str) -> None:
    """Refuse to open an engine for throughput that cannot be.

    Raises:
        InputError: names the engine and what to do.
    """
    engine = engines.get(kind)
    if not engine.several_at_once:
        able = ", ".join(k for k in engines.KINDS if engines.get(k).several_at_once)
        raise InputError(
            f"{bundle.path} holds an engine of {engine.title}, which has no throughput mode here ({able} have); leave "
            "--performance throughput out, and give larger batches"
        )


@dataclass(frozen=True)
class Threads:
    """Threads that a bundle is run with.

    Attributes:
        count: None leaves the choice to the runtime.
        note: where that is not what it was built for, as a sentence without its full stop; None where it is.
    """

    count: int | None
    note: str | None = None

    @classmethod
    def of(cls, bundle: Bundle, asked: int | None) -> Threads:
        """Return what was asked for, or what the bundle was built for, where there are as many CPUs."""
        on_cpu = engines.get(bundle.manifest.engine.kind).on_cpu
        built, here = bundle.threads if on_cpu else None, cpu_count()
        if asked is None and built is not None and built > here:
            return cls(
                here,
                f"run on {threads_text(here)}, as many as there are CPUs here, and built for {built} (build --threads)",
            )
        count, notes = built if asked is None else asked, []
        if built not in (None, count):
            notes.append(f"run on {threads_text(count)}, and built for {built} (build --threads)")
        if on_cpu and count is not None and count > here:
            notes.append(f"here {more_threads_than_cpus(count, here)}")
        return cls(count, "; ".join(notes) or None)


def more_threads_than_cpus(threads: int, cpus: int) -> str:
    """Return that threads wait for CPUs, as a clause: what is timed so tells nothing of a machine that has as many."""
    return (
        f"{threads_text(threads)} share {'1 CPU' if cpus == 1 else f'{cpus} CPUs'} and wait for one another"
    )


def threads_text(count: int) -> str:
    """Return "1 thread", or how many."""
    return "1 thread" if count == 1 else f"{count} threads"


def batch_note(bundle: Bundle, batch: int) -> str | None:
    """Say so where a batch is not the one that the engine is tuned for."""
    if batch == bundle.batch_size:
        return None
    return f"run at batch {batch}, and the engine is tuned for {bundle.batch_size}"
