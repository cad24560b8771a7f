"""What an engine is opened for: one call as soon as it can be, or as many images a second as there can be."""

from __future__ import annotations

from enum import Enum

from engines.cpu import cpu_count
from engines.errors import EngineLoadError
from engines.imports import require_threads


class Performance(str, Enum):
    """Latency: all threads on one call. Throughput: several calls at a time, each on some of the threads."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


def require_streams(streams: int | None, threads: int | None) -> None:
    """Refuse streams that would get no thread of their own: a runtime makes fewer of them and says nothing.

    Raises:
        EngineLoadError: names the number and the limit.
    """
    require_threads(threads)
    most = cpu_count() if threads is None else threads
    if streams is not None and not 1 <= streams <= most:
        of = f"the {most} CPUs here" if threads is None else f"{most} threads"
        raise EngineLoadError(
            f"streams must be 1 to {most}, got {streams}: each takes a thread at least, of {of}; leave it out for the "
            "runtime's choice"
        )
