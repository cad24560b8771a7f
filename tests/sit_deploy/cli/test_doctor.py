from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest

import engines
from sit_deploy.doctor import versions
from tests.helpers import trt_api
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


def test_what_this_cpu_multiplies(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """BF16 that would be emulated is none, and what hides the instructions is named."""
    openvino = type(engines.get("openvino"))
    reasons = {"bf16": "bf16 would be emulated here"}
    monkeypatch.setattr(openvino, "lacks", lambda _, precision: reasons.get(precision))
    monkeypatch.setattr("engines.cpu.instructions", lambda: ("amx_bf16", "avx512f"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    found = cli("doctor", "--json").json()
    assert found["kernels"]["openvino"] == {"fp32": None, "bf16": reasons["bf16"], "int8": None}
    assert found["kernels"]["onnxruntime"] == {"fp32": None, "int8": None}
    assert found["machine"]["instructions"] == ["amx_bf16", "avx512f"]
    out = cli("doctor").out
    assert "openvino: multiplies fp32, int8 on this CPU\n" in out
    assert "openvino: bf16 would be emulated here\n" in out
    assert "Instructions for products: amx_bf16, avx512f; ONEDNN_MAX_CPU_ISA=AVX512_CORE is set, and" in out


def test_a_machine_with_a_gpu(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.gpus import Gpu, GpuStatus

    gpus = GpuStatus((Gpu("NVIDIA [L4]", "sm89"), Gpu("NVIDIA A100", "sm80")), "")
    monkeypatch.setattr("engines.gpus.find_gpus", lambda: gpus)
    out = cli("doctor").out
    for gpu in ("NVIDIA [L4] (sm89)", "NVIDIA A100 (sm80)"):
        assert f"GPU: {gpu}, served by no engine that runs here\n" in out


def test_the_engine_that_serves_a_gpu(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.gpus import Gpu, GpuStatus

    gpus = GpuStatus((Gpu("NVIDIA L4", "sm89"), Gpu("NVIDIA H200", "sm90")), "")
    monkeypatch.setattr("engines.gpus.find_gpus", lambda: gpus)
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: gpus)
    monkeypatch.setitem(sys.modules, "pycuda.driver", SimpleNamespace(init=lambda: None))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_api.load("tensorrt-rtx-1.7.1"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = cli("doctor").out
    assert "GPU: NVIDIA L4 (sm89), served by --engine tensorrt-rtx\n" in out
    assert "GPU: NVIDIA H200 (sm90), served by no engine that runs here\n" in out
    monkeypatch.setitem(sys.modules, "tensorrt", trt_api.load("tensorrt-11.4.0"))
    found = cli("doctor", "--json").json()
    assert [gpu["engine"] for gpu in found["gpu"]["gpus"]] == ["tensorrt", "tensorrt"]


def test_a_release_that_is_newer_than_the_tests(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"timm": "0.9.0", "onnxruntime": "999.0"}
    monkeypatch.setattr("sit_deploy.doctor.last_tested", lambda: known)
    found = cli("doctor", "--json").json()
    assert found["newer_than_tested"] == ["timm"] and found["tested"] == known
    (line,) = [line for line in cli("doctor").out.splitlines() if "newer than" in line]
    assert line.startswith(f"timm {versions()['timm']} is newer than 0.9.0, the newest that the tests passed")
    assert "pip install timm==0.9.0`" in line
