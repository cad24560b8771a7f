from __future__ import annotations

import json
from dataclasses import asdict

import pytest

import engines
from sit_deploy.doctor import versions
from tests.helpers.command_line import CommandLine


def test_json_is_what_the_engines_say(cli: CommandLine) -> None:
    result = cli("doctor", "--json")
    found = result.json()
    assert result.err == ""
    told = [{key: value for key, value in row.items() if key != "note"} for row in found["engines"]]
    assert told == json.loads(json.dumps([asdict(support) for support in engines.support()]))
    assert found["versions"] == versions()


def test_table_and_remedies(cli: CommandLine) -> None:
    out = cli("doctor").out
    for support in engines.support():
        (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == [support.kind]]
        yes_no = ["yes" if can else "no" for can in (support.can_build, support.can_run)]
        assert row == [support.kind, support.version or "—", *yes_no]
        remedy = f"; {support.remedy}" if support.remedy else ""
        assert f"{support.kind}: {support.reason}{remedy}\n" in out  # whole, however narrow the screen
    assert f"torch {versions()['torch']}" in out


def test_a_machine_with_a_gpu(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.gpus import Gpu, GpuStatus

    gpus = GpuStatus((Gpu("NVIDIA [L4]", "sm89"), Gpu("NVIDIA A100", "sm80")), "")
    monkeypatch.setattr("engines.gpus.find_gpus", lambda: gpus)
    assert "GPU: NVIDIA [L4] (sm89), NVIDIA A100 (sm80)\n" in cli("doctor").out
