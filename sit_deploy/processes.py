"""The processes that share one job, as `torchrun` starts them, and the part of the work that each of them takes.

PyTorch is imported only where processes talk to each other: what merely takes a `Shard` does not need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sit_deploy.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The part of a whole that one process of several takes.

    Attributes:
        rank: the process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's items: every `size`-th, from number `rank` on."""
        return items[self.rank :: self.size]


# what torchrun tells its processes, and PyTorch joins them by
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = Shard()  # all of the work: what a process takes that is alone


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: its number.
        size: how many there are.
        device: what it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def shard(self) -> Shard:
        """The part of the work that this process takes."""
        return Shard(self.rank, self.size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size == 1:
            return values
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all must ask."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def gather(self, value: Any) -> list[Any]:
        """Return the value, which can be pickled, of every process, in their order; all must give theirs."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    One process that torchrun started alone joins too: its backend is asked once, so what is wrong with it shows before there are more.

    Args:
        device: "auto" for a GPU where there is one, "cpu", or "cuda".

    Raises:
        InputError: a device that is not there, or fewer GPUs than processes on this machine.
    """
    import torch

    rank, size, local = (
        int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{device}' is not offered; choose from auto, cpu, cuda")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError("no CUDA device that PyTorch can use; pass --device cpu, or install a driver")
    if device == "cpu" or not has_cuda:
        chosen, backend = torch.device("cpu"), "gloo"
    else:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} found); start "
                f"torchrun with --nproc-per-node {torch.cuda.device_count()}, or pass --device cpu"
            )
        chosen, backend = torch.device("cuda", local), "nccl"
        torch.cuda.set_device(chosen)
    if size == 1 and not all(name in os.environ for name in _LAUNCHED):
        yield World(0, 1, chosen)
        return
    import torch.distributed as dist

    dist.init_process_group(backend, device_id=chosen if backend == "nccl" else None)
    try:
        if size == 1:
            dist.all_reduce(torch.ones(1, device=chosen))  # nothing else would ask it
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()
