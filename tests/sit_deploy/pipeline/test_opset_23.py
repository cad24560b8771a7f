"""Builds with attention as one operator."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import engines
from sit_deploy.errors import InputError
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from tests.helpers.digits import HALF, half_nano


@pytest.mark.slow
def test_8_bits_inside_attention_and_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in 8 bits stays written out, the other is one operator, and the builder makes one kernel of either."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")
    monkeypatch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
    request = BuildRequest(
        HALF.name,
        tmp_path / "b",
        "fp8",
        engine="tensorrt-rtx",
        opset=23,
        targets=("sm89",),
        calib_images=1,
        calib_method="minmax",
        quantize=("proj", "attention"),
    )
    with half_nano():
        build(request)
    graph = onnx.load(tmp_path / "b" / "model.onnx")
    assert (graph.opset_import[0].version, graph.ir_version) == (23, 11)
    one = [node.name for node in graph.graph.node if node.op_type == "Attention"]
    # 0 in 8 bits, 3 has a single query
    assert one == [f"blocks.{i}/attn/attention" for i in (1, 2)]
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))
    details = manifest["engine"]["details"]
    assert (details["kernels"]["attention"], details["kernels"]["attentions"]) == (4, 4)
    assert details["eight_bits"]["widened"] == details["eight_bits"]["unknown"] == []


def test_an_onnx_runtime_that_does_not_read_it_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = type(engines.get("onnxruntime"))
    monkeypatch.setattr(runtime, "_reads_attention", lambda _: False)
    request = BuildRequest("sit_nano", tmp_path / "b", "fp32", engine="openvino", opset=23)
    with pytest.raises(
        (InputError, engines.EngineError), match=r"ONNX Runtime .* does not read opset 23, .*1\.23 does"
    ):
        build(request)
    assert not (tmp_path / "b").exists()
