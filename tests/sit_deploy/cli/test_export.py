from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from sit_deploy.bundle import sha256
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow


def test_json(trained: Trained, cli: CommandLine) -> None:
    """The graph is the bundle's, and its report what a bundle's says of the graph."""
    words = (
        "--model",
        "sit_nano",
        "--checkpoint",
        trained.checkpoint,
        "--calib-data",
        trained.images,
        "--json",
    )
    found = cli("export", *words, "--dynamic-batch", "2:3:4", "-o", "m.onnx").json()
    assert found["model"] == str(cli.folder / "m.onnx")
    assert found["weights"]["sha256"] == sha256(trained.checkpoint)
    assert found["compared_on"] == f"8 of 11 images in {trained.images}"
    assert [hop["name"] for hop in found["hops"]] == ["deploy form", "ONNX fp32", "ONNX fp32, batch 2"]
    assert (cli.folder / "m.onnx").read_bytes() == (trained.bundle / "model.onnx").read_bytes()
    assert {path.name for path in cli.folder.iterdir()} == {"tmp", "m.onnx"}


def test_for_people(cli: CommandLine) -> None:
    (cli.folder / "sit_nano.onnx").write_text("old")
    assert "sit_nano.onnx exists; pass --force" in cli.refuses("export", "--model", "sit_nano")
    words = ("--precision", "bf16", "--opset", "18", "--batch-size", "3", "--force")
    out = cli("export", "--model", "sit_nano", *words).out
    assert out.startswith("Warning: random weights (seed 0)")
    assert "Against PyTorch, on 8 synthetic images" in out
    assert "ONNX bf16: rounding simulated\n" in out
    assert "Kept in fp32: stem/conv1 (Conv of opset 18 has no bfloat16 form)\n" in out
    assert out.endswith("✓ sit_nano.onnx\n")
    model = onnx.load(cli.folder / "sit_nano.onnx")
    assert model.opset_import[0].version == 18
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [3, 3, 112, 112]


@pytest.mark.parametrize("name", ["model.pb", "model", "tmp"])
def test_a_name_that_is_no_onnx_file(name: str, cli: CommandLine) -> None:
    message = cli.refuses("export", "--model", "sit_nano", "-o", name)
    assert message == f"output {name} must be a file that ends in .onnx; pass for example -o model.onnx"


def test_the_output_is_no_folder(cli: CommandLine) -> None:
    assert "nowhere does not exist" in cli.refuses(
        "export", "--model", "sit_nano", "-o", Path("nowhere/m.onnx")
    )
