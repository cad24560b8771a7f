"""On a real GPU: every model in every precision against PyTorch, through the commands a user types."""

from __future__ import annotations

from pathlib import Path

import pytest

import engines
from sit_deploy.models.configs import CONFIGS
from tests.helpers.command_line import CommandLine

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def kind(request: pytest.FixtureRequest) -> str:
    answer = engines.get(request.param).probe()
    if not answer.can_run:
        pytest.skip(f"{request.param} does not run here: {answer.reason}")
    return request.param


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("model", CONFIGS)
def test_parity(model: str, precision: str, kind: str, cli: CommandLine, tmp_path: Path) -> None:
    """`build` compares the engine with PyTorch and fails out of tolerance; `validate` does so again from the bundle."""
    target = ["--target", "current"] if kind == "tensorrt-rtx" else []
    bundle = str(tmp_path / "bundle")
    built = cli(
        "build", "--model", model, "--precision", precision, "--engine", kind, "-o", bundle, "--json", *target
    )
    hops = {hop["name"]: hop for hop in built.json()["hops"]}
    assert hops[f"{kind} engine"]["compared"] and hops[f"{kind} engine"]["passed"]
    assert cli("validate", bundle, "--json").json()["golden"]["passed"]
