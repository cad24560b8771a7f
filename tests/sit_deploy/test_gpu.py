"""On a real GPU: every model in every precision against PyTorch, through the commands a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import engines
from engines.gpus import find_gpus
from engines.tensorrt.features import Features
from engines.tensorrt.library import FLAVOURS, import_module
from sit_deploy.models.catalog import CONFIGS
from tests.helpers.command_line import CommandLine

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def kind(request: pytest.FixtureRequest) -> str:
    answer = engines.get(request.param).probe()
    if not answer.can_run:
        pytest.skip(f"{request.param} does not run here: {answer.reason}")
    return request.param


def options_for(kind: str, precision: str) -> list[str]:
    """What the library at hand needs besides, skipping the types that it or the GPU has none of."""
    trt = import_module(FLAVOURS[kind])
    features, here = Features.of(trt), find_gpus().gpus[0].compute_capability
    if precision == "bf16" and not features.bf16:
        pytest.skip(f"TensorRT {trt.__version__} has no bfloat16")
    if precision == "fp8" and (not features.strong_typing or int(here[2:]) < 89):
        pytest.skip(f"no FP8 with TensorRT {trt.__version__} on {here}")
    words = ["--target", "current"] if kind == "tensorrt-rtx" else []
    if not features.strong_typing:  # 8.6, which knows GELU as opset 17 has it, and Q/DQ of float32 only
        words += ["--opset", "17", *(["--rest", "fp32"] if precision == "int8" else [])]
    return words


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("model", CONFIGS)
def test_parity(model: str, precision: str, kind: str, cli: CommandLine, tmp_path: Path) -> None:
    """`build` compares the engine with PyTorch and fails out of tolerance; `validate` does so again from the bundle."""
    words = options_for(kind, precision)
    cli("build", "--model", model, "--precision", precision, "--engine", kind, "-o", "bundle", *words)
    report = json.loads((tmp_path / "bundle" / "report.json").read_text(encoding="utf-8"))
    (hop,) = [hop for hop in report["hops"] if hop["name"] == f"{kind} engine"]
    assert hop["compared"] and hop["passed"]
    assert cli("validate", "bundle", "--json").json()["golden"]["passed"]
    if precision == "fp16":
        assert report["engine_layers"]["raised"] == []
