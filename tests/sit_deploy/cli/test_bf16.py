"""BF16 on a CPU: what is built, what is told of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")

from engines.kernels import Role
from engines.openvino.engine import OpenVino
from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.inference import load
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.kernels import kernels_of_bundle
from sit_deploy.report.build_types import BuildReport
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits, stand_in_for_the_float_graph
from tests.sit_deploy.conftest import Trained

BUILD = ("build", "--model", "sit_nano", "--engine", "openvino", "-o", "out")


@pytest.mark.slow
def test_every_product_is_in_bf16(trained_bf16: Path, trained: Trained, cli: CommandLine) -> None:
    bundle = load_bundle(trained_bf16)
    kernels, details = kernels_of_bundle(bundle)
    products = [kernel for kernel in kernels if kernel.role in (Role.PRODUCT, Role.ATTENTION)]
    assert products and {kernel.factors for kernel in products} == {"bfloat16"}
    assert details["kernels"]["attention"] == details["kernels"]["attentions"] > 0
    assert not details["raised"] and not details["untold"]
    # ONNX has no such convolution in this opset: what the engine makes of it is named
    assert details["lowered"] == [f"stem/conv{i}" for i in range(1, len(details["lowered"]) + 1)]
    report = BuildReport.from_dict(json.loads((trained_bf16 / "report.json").read_text()))
    hop = report.hops[-1]
    assert hop.name == "openvino engine" and hop.passed and 1e-3 < hop.error < 0.4
    page = (trained_bf16 / "report.html").read_text(encoding="utf-8")
    assert "in fp32 it multiplies in bfloat16 (stem/conv1" in page
    checked = cli("validate", trained_bf16, "--data", trained.images, "--json").json()
    assert checked["golden"]["passed"]
    files = list_images(trained.images)
    with load(trained_bf16) as ours, load(trained.bundle) as theirs:
        exact = theirs(files)
        assert 1e-3 < np.abs(ours(files) - exact).max() / exact.std() < 0.4


@pytest.mark.slow
def test_int8_beside_bf16(
    trained_bf16: Path, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_the_float_graph(digits, monkeypatch)
    monkeypatch.setattr(
        "sit_deploy.pipeline.speed_gate.ROUNDS", 2
    )  # that it is timed, and over what, is what is asked
    monkeypatch.setattr("sit_deploy.pipeline.speed_gate.SECONDS", 0.1)
    bundle = build(
        digits.request(tmp_path / "b", engine="openvino", rest="bf16", quantize=("default", "stem"))
    )
    details = bundle.manifest.engine.details
    assert set(details["kernels"]["products"]) == {"bfloat16", "int8"}
    assert not details["eight_bits"]["widened"] and not details["eight_bits"]["unknown"]
    graph = onnx.load(bundle.model_path).graph
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    types = {t.data_type for t in graph.initializer if t.name in scales}
    assert types == {onnx.TensorProto.FLOAT}
    report = BuildReport.from_dict(json.loads((bundle.path / "report.json").read_text()))
    assert report.quantization.rest == "bf16" and report.quantization.speed.over == "bf16"


def test_cpus_that_have_none(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "this CPU does not multiply bf16"
    monkeypatch.setattr(OpenVino, "lacks", lambda self, precision: reason if precision == "bf16" else None)
    assert cli.refuses(*BUILD, "--precision", "bf16") == f"{reason}; pass --precision fp32 or int8"
    assert cli.refuses(*BUILD, "--precision", "int8", "--rest", "bf16") == f"{reason}; pass --rest fp32"
    other = ("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "out")
    assert cli.refuses(*other, "--precision", "bf16") == (
        "ONNX Runtime has no bf16 kernels for a CPU; pass --engine tensorrt-rtx, or --precision fp32 or fp16"
    )


def test_engines_that_have_it_or_not(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVino, "lacks", lambda self, precision: None)
    other = ("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "out")
    assert cli.refuses(*other, "--precision", "bf16").startswith(
        "ONNX Runtime has no bf16 kernels for a CPU; pass --engine openvino, or"
    )
    assert cli.refuses(*other, "--precision", "int8", "--rest", "bf16") == (
        "ONNX Runtime does not compute bf16 beside int8; pass --rest fp32 or fp16"
    )
    assert cli.refuses(*BUILD, "--precision", "fp32", "--rest", "bf16").startswith("--rest is for 8 bits")
    assert cli.refuses(*BUILD, "--precision", "int8", "--rest", "bf8").startswith("--rest bf8 is not offered")
