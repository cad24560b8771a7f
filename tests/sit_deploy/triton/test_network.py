"""What our Python model reads of its configuration, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sit_deploy.triton.python_models as models


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stub: Any = SimpleNamespace(TritonModelException=ValueError)
    session: Any = SimpleNamespace(Session=None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.setitem(sys.modules, "sit_deploy_parts", ModuleType("sit_deploy_parts"))
    monkeypatch.setitem(sys.modules, "sit_deploy_parts.session", session)
    spec = importlib.util.spec_from_file_location(
        "network_of_test", Path(models.__file__).with_name("network.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("threads", "counts", "found"),
    [(0, [1], 0), (0, [], 0), (3, [4], 3), (0, [2], 4), (0, [2, 2], 2), (0, [3], 2), (0, [100], 1)],
)
def test_copies_share_the_cpus(
    threads: int, counts: list[int], found: int, network: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take all of them, and wait for the others."""
    monkeypatch.setattr(network.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    config = {
        "parameters": {"threads": {"string_value": str(threads)}},
        "instance_group": [{"count": count} for count in counts],
    }
    assert network._threads(config) == found
