"""What our Python model reads of its configuration, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import sit_deploy.triton.python_models as models
from engines import cpu


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stub: Any = SimpleNamespace(TritonModelException=ValueError)
    session: Any = SimpleNamespace(Session=None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.setitem(sys.modules, "sit_deploy_parts", ModuleType("sit_deploy_parts"))
    monkeypatch.setitem(sys.modules, "sit_deploy_parts.session", session)
    monkeypatch.setitem(sys.modules, "sit_deploy_parts.cpu", cpu)  # which lies beside it as it is
    spec = importlib.util.spec_from_file_location(
        "network_of_test", Path(models.__file__).with_name("network.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# CPUs that it may run on, of eight; microseconds of CPU time in each 100,000; threads, copies of each group, and what each gets
ALL, SOME = range(8), range(3)
CASES = {
    # each would take all of them, and wait for the others
    "copies share the CPUs": (ALL, None, [(0, [1], 0), (0, [], 0), (3, [4], 3), (0, [2], 4), (0, [2, 2], 2), (0, [3], 2), (0, [100], 1)]),
    # it sees eight and has the time of three at most: a runtime would start eight threads
    "a container's limit": (ALL, 250000, [(0, [1], 3), (0, [], 3), (5, [4], 5), (0, [2], 1), (0, [3], 1), (0, [100], 1)]),
    # `docker run --cpuset-cpus 0-2`: ONNX Runtime would start eight threads
    "a container's CPUs": (SOME, None, [(0, [1], 3), (0, [], 3), (5, [4], 5), (0, [2], 1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_threads_are_those_that_can_run(
    case: str, network: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usable, limit, wanted = CASES[case]
    monkeypatch.setattr(cpu, "usable_cpus", lambda: tuple(usable))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(cpu, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cpu, "_CGROUPS", tmp_path)
    if limit:
        (tmp_path / "own").write_text("0::/\n")
        (tmp_path / "cpu.max").write_text(f"{limit} 100000\n")
    for threads, counts, found in wanted:
        assert network._threads(config(threads, counts)) == found, (threads, counts)


def config(threads: int, counts: list[int]) -> dict:
    return {
        "parameters": {"threads": {"string_value": str(threads)}},
        "instance_group": [{"count": count} for count in counts],
    }
