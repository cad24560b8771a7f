"""The processes of one training: alone, or as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sit_deploy.errors import InputError


@dataclass(frozen=True)
class World:
    """This process among all. rank: its number. size: how many there are. device: what it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all must ask."""
        return bool(self._reduce(torch.tensor(int(flag), device=self.device), dist.ReduceOp.MAX))

    def gather(self, value: Any) -> list[Any]:
        """Return the value, which can be pickled, of every process, in their order; all must give theirs."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def _reduce(self, values: Tensor, how: dist.ReduceOp) -> Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: "auto" for a GPU where there is one, "cpu", or "cuda".
    Raises:
        InputError: a device that is not there, or fewer GPUs than processes on this machine.
    """
    rank, size, local = (
        int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{device}' is not offered; choose from auto, cpu, cuda")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("no CUDA device that PyTorch can use; pass --device cpu, or install a driver")
    if device == "cpu" or not found:
        chosen, backend = torch.device("cpu"), "gloo"
    else:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} found); start "
                f"torchrun with --nproc-per-node {torch.cuda.device_count()}, or pass --device cpu"
            )
        chosen, backend = torch.device("cuda", local), "nccl"
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(0, 1, chosen)
        return
    dist.init_process_group(backend, device_id=chosen if backend == "nccl" else None)
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()
