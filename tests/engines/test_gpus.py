"""What nvidia-smi tells, by a stand-in for it on the PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.gpus import telemetry

ANSWER = "NVIDIA H200, 580.1, 1980, 1980, 3201, 412.53, 700.00, 61, 143771"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an nvidia-smi there that writes its arguments to a file and answers."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(answer: str, status: int = 0) -> Path:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{answer}'\nexit {status}\n")
        script.chmod(0o755)
        return tmp_path / "asked"

    return make


def test_clocks_power_and_temperature(smi):
    asked = smi(ANSWER)
    found = telemetry()
    assert found["name"] == "NVIDIA H200" and found["driver_version"] == "580.1"
    assert (found["clocks_sm"], found["power_draw"], found["temperature_gpu"]) == (1980.0, 412.53, 61.0)
    assert "clocks.max.sm" in asked.read_text() and "--id=0" in asked.read_text()


def test_what_is_not_told_is_none(smi):
    smi(ANSWER.replace("412.53", "[N/A]"))
    assert telemetry()["power_draw"] is None


@pytest.mark.parametrize(
    ("visible", "number", "asked_for"), [("3,5", 1, "5"), ("", 2, "2"), ("GPU-abc", 0, "GPU-abc")]
)
def test_the_device_that_cuda_shows(smi, monkeypatch, visible: str, number: int, asked_for: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = smi(ANSWER)
    telemetry(number)
    assert f"--id={asked_for}" in asked.read_text()


def test_where_there_is_none(smi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    smi("no devices were found", status=6)
    assert telemetry() is None
    smi("half, an answer")
    assert telemetry() is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert telemetry() is None
