from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict

import pytest

import engines
from sit_deploy import doctor
from sit_deploy.doctor import examine, packages, versions


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert set(found) == {"python", "platform", *packages()}
    monkeypatch.setattr(doctor, "packages", lambda: ("no-such-package", "numpy"))
    assert versions()["no-such-package"] is None


def test_engines_are_what_the_engines_say() -> None:
    found = examine()["engines"]
    notes = {engine["kind"]: engine.pop("note") for engine in found}
    assert found == [asdict(support) for support in engines.support()]
    assert {kind for kind, note in notes.items() if note} == {"tensorrt-rtx"}
    assert "INT8 for weights alone" in notes["tensorrt-rtx"]


def test_answers_are_plain_json_and_of_this_machine() -> None:
    found = examine()
    assert json.loads(json.dumps(found, allow_nan=False)).keys() == {
        *("engines", "gpu", "kernels", "machine", "versions")
    }
    assert found["machine"]["logical_cpus"] == os.cpu_count()
    assert found["machine"]["memory_bytes"] is None or found["machine"]["memory_bytes"] > 2**28
    assert found["machine"]["free_disk_bytes"] >= 0
    assert bool(found["gpu"]["gpus"]) != bool(found["gpu"]["reason"])


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert doctor._memory() is None
