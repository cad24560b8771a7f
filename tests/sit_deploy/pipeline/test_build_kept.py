"""Token schedules of any counts, from the command line to a bundle that is built again."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch

from sit_deploy.bundle import load_bundle
from sit_deploy.models import create_model, get_config
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.validation.reference import reference_model
from tests.helpers.command_line import CommandLine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("half_the_blocks")]

KEPT = (9, 7, 3, 3)
OPTIONS = ("--kept", "9,7,3,3", "--image-size", "48", "--engine", "onnxruntime", "--calib-images", "2")


def test_random_weights(cli: CommandLine) -> None:
    """Manifest, command and reference are of these tokens: a reference of the ratio's would be another model."""
    cli("build", "--model", "sit_nano", *OPTIONS, "-o", "b")
    facts = json.loads((cli.folder / "b" / "manifest.json").read_text(encoding="utf-8"))
    model = facts["model"]
    assert (model["tokens"], model["keeping_ratio"], model["stages"]) == ([*KEPT], None, [1, 1, 1, 1])
    assert model["config"]["kept"] == [*KEPT] and "keeping_ratio" not in model["config"]
    words = shlex.split(facts["command"])
    assert words[words.index("--kept") + 1] == "9,7,3,3" and "--keeping-ratio" not in words
    bundle = load_bundle(cli.folder / "b")
    reference = reference_model(bundle)
    assert reference.kept == KEPT
    golden = np.load(cli.folder / "b" / "golden.npz")
    with torch.no_grad():
        logits = reference(torch.from_numpy(golden["images"])).numpy()
    assert np.abs(logits - golden["logits"]).max() < 1e-4 * golden["logits"].std()


def test_a_card_says_them(cli: CommandLine) -> None:
    """Without any option, and at another size, where more patches come to the same tokens."""
    model = create_model(get_config("sit_nano", kept=(49, 40, 20, 10)), num_classes=2)
    card = ModelCard("sit_nano", (1, 1, 1, 1), None, (49, 40, 20, 10), 112, 2, Preprocessing.for_model(112))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("aux_head.")}
    save_weights(cli.folder / "m.safetensors", weights, card)
    request = BuildRequest(None, None, checkpoint=cli.folder / "m.safetensors")
    done = request.completed()
    assert (done.stages, done.keeping_ratio, done.kept) == ((1, 1, 1, 1), None, (49, 40, 20, 10))
    assert done.completed() == done
    larger = BuildRequest(None, None, checkpoint=cli.folder / "m.safetensors", image_size=128).completed()
    assert larger.kept == (64, 40, 20, 10)
    options = ("--checkpoint", "m.safetensors", "--calib-images", "2")
    result = cli("export", *options, "--image-size", "128", "-o", "m.onnx", "--json").json()
    assert all(hop["passed"] for hop in result["hops"])
    assert cli.refuses("export", *options, "--keeping-ratio", "0.5") == (
        "checkpoint m.safetensors is a sit_nano of stages 1,1,1,1 keeping 49,40,20,10 tokens by its model card, not the sit_nano of stages "
        "1,1,1,1 and keeping ratio 0.5 asked for; leave out --model, --stages and --keeping-ratio"
    )
    message = cli.refuses("export", *options, "--image-size", "96")  # of 36 patches
    assert "grow from 36 to 40" in message
