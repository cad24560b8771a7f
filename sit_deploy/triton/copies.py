"""How many copies of a model Triton runs, and on how many threads each: for latency or for throughput, never on more than there are.

A copy in the Python backend is a process with a session of its own, of ONNX Runtime or OpenVINO, that runs one batch at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.cpu import cpu_count
from engines.performance import Performance
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.performance import Threads, read_performance


@dataclass(frozen=True)
class Copies:
    """What was asked for.

    Attributes:
        performance: "latency": a copy on all threads; "throughput": a copy a CPU, on one thread each.
        instances: copies; None leaves it to that.
        threads: of each copy, 0 for the runtime's choice; None leaves it to `performance`.
    """

    performance: str = "latency"
    instances: int | None = None
    threads: int | None = None

    def of(self, bundle: Bundle, backend: str) -> tuple[int, int]:
        """Return copies and the threads of each, 0 where the model shares the CPUs out where it is loaded.

        Raises:
            InputError: throughput with a backend that has no such mode, or more threads than CPUs here.
        """
        mode = read_performance(self.performance, None)
        if mode is Performance.LATENCY:
            return self._for_latency(bundle, backend)
        if backend != "python":
            raise InputError(
                f"--performance throughput shares CPUs out among copies of our Python model, and --backend {backend} is served "
                "by Triton's own; leave it out and give --instances, or pass --backend python"
            )
        cpus = cpu_count()
        instances, threads = self.instances, self.threads or None
        if instances is None:
            instances = cpus // (threads or 1)
        if threads is None:
            threads = max(1, cpus // instances)
        if instances < 1 or instances * threads > cpus:
            raise InputError(
                f"{max(1, instances)} copies on {threads} threads each are more than the {cpus} CPUs here, and would wait for one "
                f"another; pass --instances and --threads whose product is at most {cpus}, or leave one of them out"
            )
        return instances, threads

    @staticmethod
    def crowd(instances: int, threads: int) -> str | None:
        """Say so where copies were given more threads than there are CPUs here; None where they were not."""
        if instances * threads <= (cpus := cpu_count()):
            return None
        return f"{instances} on {threads} threads each are more than the {cpus} CPUs here: they wait for one another"

    def _for_latency(self, bundle: Bundle, backend: str) -> tuple[int, int]:
        instances = 1 if self.instances is None else self.instances
        if self.threads is not None or backend != "python" or instances != 1:
            return instances, self.threads or 0
        return instances, Threads.of(bundle, None).count or 0
