"""What OpenVINO multiplies with: told by multiplying, where its list of types tells of the CPU alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import BuildOptions, EngineBuildError, EngineLoadError, cpu

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")

from engines.openvino import instructions, library, runner
from engines.openvino.engine import OpenVino

_TOLD = """
import openvino
from engines.openvino import bfloat16, instructions
listed = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(listed, bfloat16.has_bfloat16(openvino), instructions.int8_saturates(openvino))
"""
needs_avx512 = pytest.mark.skipif(
    not {"avx512f", "avx512_vnni"} <= set(cpu.instructions()), reason="needs a CPU with AVX-512 and VNNI"
)


@needs_avx512
@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "low", "saturates"),
    [
        ("ONEDNN_MAX_CPU_ISA=AVX2", False, True),
        ("DNNL_MAX_CPU_ISA=AVX512_CORE", False, True),
        ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI", False, False),
        ("ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16", "avx512_bf16" in cpu.instructions(), False),
        ("ONEDNN_MAX_CPU_ISA=ALL", "avx512_bf16" in cpu.instructions(), False),
    ],
)
def test_instructions_that_onednn_may_not_use(limit: str, low: bool, saturates: bool) -> None:
    """Whatever OpenVINO lists: of this CPU it lists BF16 under every limit."""
    name, _, value = limit.partition("=")
    without = {key: value for key, value in os.environ.items() if "MAX_CPU_ISA" not in key}
    found = subprocess.run(
        [sys.executable, "-c", _TOLD],
        env={**without, name: value},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert found.stdout.split()[1:] == [str(low), str(saturates)], found.stderr


def test_a_limit_is_named_as_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert cpu.onednn_limit() is None
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "avx2")
    assert cpu.onednn_limit() == "DNNL_MAX_CPU_ISA=avx2"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "all")  # goes before the older name
    assert cpu.onednn_limit() is None


def test_a_cpu_whose_int8_saturates_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """43 dB were 24 in silence; ONNX Runtime has kernels for such a CPU that are exact."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    x, ends = ops.parameter([1, 4], ov.Type.f32), (np.float32(0), np.float32(1))
    model = ov.Model([ops.relu(ops.fake_quantize(x, *ends, *ends, 256))], [x], "quantized")
    ov.save_model(model, str(tmp_path / "engine.xml"))
    monkeypatch.setattr(runner, "int8_saturates", lambda _: True)
    monkeypatch.setattr(instructions, "int8_saturates", lambda _: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(
        EngineLoadError, match=r"int8, and OpenVINO adds .*; unset ONEDNN_MAX_CPU_ISA, or build"
    ):
        OpenVino().load(tmp_path / "engine.xml")
    assert (
        OpenVino().lacks("int8")
        == f"{library.SATURATES} (with ONEDNN_MAX_CPU_ISA=AVX2 set; unset it where the CPU has more)"
    )
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert OpenVino().lacks("int8") == library.SATURATES
    assert OpenVino().lacks("fp32") is None
    monkeypatch.setattr(runner, "int8_saturates", lambda _: False)
    with OpenVino().load(tmp_path / "engine.xml"):
        pass


def test_a_build_by_itself_refuses_it_too(
    int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command asked before it began; `build` of the engine alone wrote what every opener then refuses."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(instructions, "int8_saturates", lambda _: True)
    with pytest.raises(EngineBuildError) as caught:
        OpenVino().build(int8_model, tmp_path / "engine.xml", BuildOptions(threads=1))
    assert str(caught.value) == (
        f"{int8_model} is in int8, and {library.SATURATES}; build it with --engine onnxruntime, or with --precision fp32"
    )
    assert not (tmp_path / "engine.xml").exists()
    monkeypatch.setattr(instructions, "int8_saturates", lambda _: False)
    OpenVino().build(int8_model, tmp_path / "engine.xml", BuildOptions(threads=1))
