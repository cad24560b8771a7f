"""How many CPUs may be kept busy, where a container is limited."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines import cpu


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a system's control groups in place of this machine's; sixteen CPUs."""
    monkeypatch.setattr(cpu, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(cpu, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return tmp_path


def put(group: Path, own: str, **files: str) -> None:
    (group / "own").write_text(own)
    for name, text in files.items():
        path = group / "fs" / name.replace("__", "/").replace("_max", ".max").replace("_cfs", ".cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_nothing_limits(group: Path) -> None:
    assert (cpu.quota(), cpu.cpu_count()) == (None, 16)  # no control groups at all
    put(group, "0::/\n", cpu_max="max 100000\n")
    assert (cpu.quota(), cpu.cpu_count()) == (None, 16)
    put(
        group,
        "3:cpu,cpuacct:/\n",
        **{"cpu,cpuacct__cpu_cfs_quota_us": "-1\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"},
    )
    assert (cpu.quota(), cpu.cpu_count()) == (None, 16)


@pytest.mark.parametrize(
    ("text", "limit", "count"),
    [("200000 100000", 2.0, 2), ("150000 100000", 1.5, 2), ("10000 100000", 0.1, 1), ("6400000 100000", 64.0, 16)],
)  # fmt: skip
def test_version_2(text: str, limit: float, count: int, group: Path) -> None:
    put(group, "0::/\n", cpu_max=f"{text}\n")
    assert (cpu.quota(), cpu.cpu_count()) == (pytest.approx(limit), count)


def test_time_of_fewer_cpus_than_are_seen(group: Path) -> None:
    for text, count in (
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1600000 100000", None),
        ("max 100000", None),
    ):
        put(group, "0::/\n", cpu_max=f"{text}\n")
        assert cpu.throttled_to() == count


def test_every_group_above_counts(group: Path) -> None:
    put(group, "0::/pod/box\n", pod__cpu_max="300000 100000\n", pod__box__cpu_max="max 100000\n")
    assert cpu.quota() == 3.0
    put(group, "0::/pod/box\n", pod__box__cpu_max="100000 100000\n")
    assert cpu.quota() == 1.0


def test_version_1(group: Path) -> None:
    """Within a container the path is the host's, and its own limit is at the root; other controllers say nothing."""
    files = {"cpu__cpu_cfs_quota_us": "400000\n", "cpu__cpu_cfs_period_us": "100000\n"}
    put(group, "4:memory:/x\n3:cpuset:/\n1:cpu:/docker/abc\n0::/\n", **files)
    assert (cpu.quota(), cpu.cpu_count()) == (4.0, 4)
    put(group, "4:memory:/x\n", **files)
    assert cpu.quota() is None


@pytest.mark.parametrize("text", ["", "nonsense\n", "1 2 3\n", "0 100000\n", "100000 0\n"])
def test_what_cannot_be_read_limits_nothing(text: str, group: Path) -> None:
    put(group, "0::/../..\nnonsense\n", cpu_max=text)
    assert cpu.quota() is None


def test_whoever_counts_cpus_asks_here() -> None:
    """The system's own counts know nothing of a container's limit."""
    root = Path(cpu.__file__).parents[1]
    # a bound on what may be asked for; what the machine has; whose use is looked at; what a limit keeps from
    known = {
        "engines/cpu.py",
        "engines/imports.py",
        "engines/timing.py",
        "engines/worker.py",
        "training/preflight.py",
    }
    counting = {
        str(path.relative_to(root))
        for package in ("engines", "calibration", "sit_deploy", "training")
        for path in (root / package).rglob("*.py")
        if any(
            word in path.read_text()
            for word in ("os.cpu_count", "sched_getaffinity", "multiprocessing.cpu_count")
        )
    }
    assert counting == known
