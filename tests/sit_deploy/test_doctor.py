from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import pytest

import engines
from sit_deploy import doctor
from sit_deploy.doctor import examine, last_tested, newer_than_tested, packages, versions


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
        *("engines", "gpu", "kernels", "machine", "newer_than_tested", "tested", "versions")
    }
    assert found["machine"]["logical_cpus"] == os.cpu_count()
    assert found["machine"]["memory_bytes"] is None or found["machine"]["memory_bytes"] > 2**28
    assert found["machine"]["free_disk_bytes"] >= 0
    assert bool(found["gpu"]["gpus"]) != bool(found["gpu"]["reason"])


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert doctor._memory() is None


def test_what_was_tested_is_what_constraints_say() -> None:
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text()
    found = last_tested()
    assert (
        {"torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt-rtx"} <= set(found) <= set(packages())
    )
    assert all(f"\n{name}=={version};" in pins for name, version in found.items())
    assert "tensorrt" not in found  # no release of it was


@pytest.mark.parametrize(
    ("installed", "known", "newer"),
    [
        ("1.0.32", "1.0.31", True),
        ("1.0.31", "1.0.31", False),
        ("1.0.4", "1.0.31", False),
        ("2.15.0+cu130", "2.15.0", False),
        ("2.15.1+cpu", "2.15.0", True),
        ("2.15.0.dev20261101", "2.15.0", False),
        ("2.16.0rc1", "2.15.0", True),
        ("1.7.2", "1.7.1.116", True),
        ("of-our-own", "1.0", False),
        (None, "1.0", False),
    ],
)
def test_a_release_is_newer_by_its_number(installed: str | None, known: str, newer: bool) -> None:
    assert newer_than_tested({"timm": installed}, {"timm": known}) == (["timm"] if newer else [])


def test_a_package_that_was_tested_may_be_missing() -> None:
    assert newer_than_tested({}, {"openvino": "2026.4.1"}) == []
