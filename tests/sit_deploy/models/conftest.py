"""Checkpoints of the smallest named model, written as trainers write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.models.sit import SiT
from tests.helpers.models import named_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose more to a second thread than they gain, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sit_nano() -> SiT:
    """A randomised sit_nano; not to be altered."""
    return named_model("sit_nano").requires_grad_(False)


@pytest.fixture
def state(sit_nano: SiT) -> dict[str, torch.Tensor]:
    """The state dict of `sit_nano`, which may be altered."""
    return dict(sit_nano.state_dict())


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes any object as PyTorch does and returns the file: save(content, name="sit.pth")."""

    def write(content: Any, name: str = "sit.pth", **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write
