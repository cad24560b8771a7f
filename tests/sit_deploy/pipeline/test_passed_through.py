"""Models that the deploy form does not rewrite, from a name to an engine that is checked: and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.errors import InputError
from sit_deploy.models.load import load_model
from sit_deploy.pipeline.float_graph import _reference
from tests.helpers.command_line import CommandLine

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("test_vit_relpos:depth=2", "fp32", "the whole model, which has another architecture (vision_transformer_relpos.VisionTransformerRelPos)"),
        ("test_vit:depth=2,attn_layer=diff", "fp16", "all blocks, which have DiffAttention in place of plain attention"),
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


def test_arguments_that_make_a_model_which_cannot_run_are_refused() -> None:
    loaded = load_model("test_vit:depth=1,norm_layer=batchnorm2d", image_size=32)
    with pytest.raises(InputError, match=r"is made, but does not run \(.*\); check what follows the colon"):
        _reference(loaded, np.zeros((1, 3, 32, 32), np.float32), ("logits",))
