from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import engines
from engines import Engine, Support, gpus, registry
from engines.onnxruntime.engine import OnnxRuntime
from engines.openvino.engine import OpenVino


def test_import_is_light():
    code = (
        "import sys, engines\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'torch'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", engines.KINDS)
def test_an_engine_says_what_it_is(kind: str):
    engine = engines.get(kind)
    assert engine.kind == kind
    assert engine.title == engines.TITLES[kind] and engine.on_cpu == (kind in engines.ON_CPU)
    assert {"fp32", "fp16", "int8", engine.precision_beside_8_bits} <= set(engine.precisions)
    assert engine.targets_with("fp32", ("sm80",)) == ("sm80",)


def test_what_a_precision_takes(monkeypatch: pytest.MonkeyPatch):
    """Named to whoever has an engine without: one that can be used on any machine."""
    assert registry.with_precision("bf16") == registry.with_precision("fp8") == "tensorrt-rtx"
    assert registry.with_precision("fp8", on_cpu=True) == "tensorrt-rtx"
    monkeypatch.setattr(OpenVino, "probe", lambda self: Support("openvino", True, "1", True, True, "here"))
    for reason, named in ((None, "openvino"), ("this CPU does not multiply bf16", "tensorrt-rtx")):
        monkeypatch.setattr(OpenVino, "lacks", lambda self, precision, reason=reason: reason)
        assert registry.with_precision("bf16", on_cpu=True) == named


def test_what_an_engine_does_not_tell():
    class Plain(OnnxRuntime):
        title = "Plain"
        layer_times = Engine.layer_times
        tensor_outputs = Engine.tensor_outputs

    for verb in (Plain().layer_times, Plain().tensor_outputs):
        with pytest.raises(engines.EngineError, match=r"^Plain does not "):
            verb(Path("engine"), {})


def test_unknown_kind_suggests_the_nearest():
    with pytest.raises(engines.EngineError, match=r"did you mean tensorrt-rtx\?.*onnxruntime"):
        engines.get("tensorrt_rtx")


def test_support_covers_every_kind_in_order():
    answers = engines.support()
    assert tuple(answer.kind for answer in answers) == engines.KINDS
    for answer in answers:
        assert answer.installed == (answer.version is not None)
        assert answer.can_build or answer.remedy


def test_auto_prefers_rtx_over_onnxruntime_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: gpus.GpuStatus((), "none"))
    engine, why = engines.select()
    assert engine.kind == "tensorrt-rtx"
    assert why.startswith("tensorrt-rtx was chosen") and why.endswith(".")


def test_auto_falls_back_to_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    engine, why = engines.select()
    assert engine.kind == "onnxruntime"
    assert "TensorRT-RTX is not installed" in why


def test_asking_for_a_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(engines.EngineNotInstalledError, match=r"pip install '?tensorrt-rtx"):
        engines.select("tensorrt-rtx")


def test_no_runtime_at_all(monkeypatch: pytest.MonkeyPatch):
    for name in ("tensorrt", "tensorrt_rtx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(engines.EngineNotInstalledError, match="pip install 'onnxruntime>="):
        engines.select()


def test_gpu_status_is_true_or_has_a_reason():
    status = gpus.find_gpus()
    assert bool(status) != bool(status.reason)


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert "no NVIDIA driver" in gpus.find_gpus().reason
