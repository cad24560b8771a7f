"""PyTorch as a side of a timing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sit_deploy.validation import torch_worker
from sit_deploy.validation.torch_worker import TorchCall


@pytest.fixture
def three_threads() -> Iterator[None]:
    """PyTorch starts three threads, as where it sees three CPUs."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_are_no_more_than_a_container_has_time_for(
    nano_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would make PyTorch slow, and the engine beside it look fast."""
    monkeypatch.setattr(torch_worker, "cpu_count", lambda: 2)
    TorchCall(nano_fp32, None, 1, None)
    assert torch.get_num_threads() == 2
    TorchCall(nano_fp32, None, 1, 3)  # as somebody asked for
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(torch_worker, "cpu_count", lambda: 64)
    TorchCall(nano_fp32, None, 1, None)
    assert torch.get_num_threads() == 3
