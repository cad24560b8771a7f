"""What nvidia-smi tells, by a stand-in for it on the PATH."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.gpus import telemetry, telemetry_of

ANSWER = "NVIDIA H200, 580.1, 1980, 1980, 3201, 412.53, 700.00, 61, 143771"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an nvidia-smi there that writes its arguments to a file and answers; no driver tells anything."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("engines.gpus._driver", lambda: (None, "no driver"))

    def make(answer: str | bytes, status: int = 0) -> Path:
        answer = answer.encode() if isinstance(answer, str) else answer
        (tmp_path / "answer").write_bytes(answer + b"\n")
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f"#!/bin/sh\necho \"$@\" > '{tmp_path}/asked'\ncat '{tmp_path}/answer'\nexit {status}\n"
        )
        script.chmod(0o755)
        return tmp_path / "asked"

    return make


def test_clocks_power_and_temperature(smi):
    asked = smi(ANSWER)
    found = telemetry()
    assert found["name"] == "NVIDIA H200" and found["driver_version"] == "580.1"
    assert (found["clocks_sm"], found["power_draw"], found["temperature_gpu"]) == (1980.0, 412.53, 61.0)
    assert "clocks.max.sm" in asked.read_text() and "--id=0" in asked.read_text()


@pytest.mark.parametrize("text", ["[N/A]", "[Not Supported]", "nan", "inf", "", "Unknown Error"])
def test_what_is_not_told_is_none(smi, text: str):
    """NaN and infinity too: they are numbers to Python, and go into no JSON."""
    smi(ANSWER.replace("412.53", text))
    found = telemetry()
    assert found["power_draw"] is None and found["clocks_sm"] == 1980.0


@pytest.mark.parametrize(
    ("visible", "number", "asked_for"), [("3,5", 1, "5"), ("", 2, "2"), ("GPU-abc", 0, "GPU-abc")]
)
def test_the_device_that_cuda_shows(smi, monkeypatch, visible: str, number: int, asked_for: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = smi(ANSWER)
    telemetry(number)
    assert f"--id={asked_for}" in asked.read_text()


def test_a_device_is_asked_for_by_its_place_on_the_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smi):
    """CUDA puts the fastest first, nvidia-smi the first of the bus: one number is two devices."""
    places = (b"0000:65:00.0", b"0000:17:00.0")

    def place(buffer: Any, size: int, device: Any) -> int:
        assert size > len(places[device.value])
        buffer.value = places[device.value]
        return 0

    def get(device: Any, number: int) -> int:
        device._obj.value = number
        return 0 if number < len(places) else 101  # CUDA_ERROR_INVALID_DEVICE

    asked = smi(ANSWER)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8,9")
    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=get, cuDeviceGetPCIBusId=place)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    for device, wanted in (("cuda", "0000:65:00.0"), ("cuda:1", "0000:17:00.0"), ("cuda:2", "9")):
        telemetry_of(device)
        assert f"--id={wanted}\n" in asked.read_text()
    del driver.cuDeviceGetPCIBusId  # a driver without it
    telemetry_of("cuda:1")
    assert "--id=8\n" in asked.read_text()
    asked.unlink()
    assert telemetry_of("cpu") is None and not asked.exists()


def test_where_there_is_none(smi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    smi("no devices were found", status=6)
    assert telemetry() is None
    smi("half, an answer")
    assert telemetry() is None
    smi(f"{ANSWER}\n{ANSWER}")  # of two devices
    assert telemetry() is None
    smi(b"\xff\xfe\x00 no text at all")
    assert telemetry() is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert telemetry() is None
