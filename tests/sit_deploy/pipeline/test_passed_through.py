"""Models that the deploy form does not rewrite, from a name to an engine that is checked: and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sit_deploy.bundle import load_bundle
from tests.helpers.command_line import CommandLine

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("test_vit_relpos", "fp32", "the whole model, which has another architecture (vision_transformer_relpos.VisionTransformerRelPos)"),
        ("test_vit:attn_layer=diff", "fp16", "all blocks, which have DiffAttention in place of plain attention"),
    ],
)  # fmt: skip
def test_it_is_built_checked_and_named(cli: CommandLine, name: str, precision: str, words: str) -> None:
    built = cli("build", "--model", name, "--num-classes", "5", "--image-size", "64", "--precision", precision, "--engine", "onnxruntime",
                "-o", "made")  # fmt: skip
    assert built.status == 0, built.err
    assert f"Note: deployed as PyTorch writes it: {words}" in built.out.splitlines()
    manifest = load_bundle(Path("made")).manifest
    assert manifest.model.config["passed_through"] == words
    shown = cli("inspect", "made", "--json")
    assert json.loads(shown.out)["passed_through"] == words
    assert f"As PyTorch writes it: {words}" in cli("inspect", "made").out
    assert words.replace("'", "&#x27;") in (Path("made") / "report.html").read_text(encoding="utf-8")
    assert cli("validate", "made").status == 0


def test_nothing_is_said_of_one_that_is_rewritten(nano_fp32: Path, cli: CommandLine) -> None:
    assert "passed_through" not in load_bundle(nano_fp32).manifest.model.config
    assert "PyTorch writes" not in cli("inspect", str(nano_fp32)).out
