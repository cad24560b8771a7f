"""From a repository or a folder that timm saved to the finished bundle, and from there back to the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sit_deploy.bundle import load_bundle
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.validation.reference import TeacherSource, reference_model, reference_weights, teacher_model
from tests.helpers.command_line import CommandLine
from tests.helpers.hub import COMMIT

constants = pytest.importorskip("huggingface_hub.constants")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("half_the_blocks")]


def saved_by_timm(folder: Path, name: str, **options: Any) -> None:
    """Write a model as `timm.models.save_for_hf` does: config.json and weights."""
    import timm
    from timm.models._hub import save_config_for_hf

    import sit_deploy.models  # noqa: F401  # ours are timm's then

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options)
    names = {"label_names": ["ant", "bee", "cat"]}
    save_config_for_hf(model, str(folder / "config.json"), names)
    save_file(model.state_dict(), folder / "model.safetensors")


def test_a_repository(cached: Callable[..., Path], cli: CommandLine) -> None:
    snapshot = cached("me/three", None)
    saved_by_timm(snapshot, "lvvit_nano", img_size=64)
    built = cli("build", "--model", "hf-hub:me/three", "--engine", "onnxruntime", "--json").json()
    bundle = "lvvit_nano-fp32"
    assert Path(built["bundle"]) == cli.folder / bundle
    weights = built["weights"]
    assert (weights["repository"], weights["revision"]) == ("me/three", COMMIT)
    assert built["classes"] == ["ant", "bee", "cat"]
    # what builds it again has the repository at its commit, and no path of this machine's cache
    assert f"--checkpoint hf-hub:me/three@{COMMIT}" in built["command"]
    assert str(constants.HF_HUB_CACHE) not in built["command"]

    opened = load_bundle(cli.folder / bundle)
    teacher = TeacherSource(Path("hf-hub:me/three")).fetched()  # its config.json names the model
    assert teacher.source == snapshot / "model.safetensors"
    assert teacher_model(opened, teacher).num_classes == 3
    message = cli.refuses("report", bundle, "--teacher", "hf-hub:me/other", "--rounds", "0", "-o", "r.json")
    assert "config.json of hf-hub:me/other is not in the cache" in message
    moved = snapshot.rename(snapshot.with_name("f" * 40))
    message = cli.refuses("bench", bundle)
    assert message.endswith(f"is not there; pass --checkpoint hf-hub:me/three@{COMMIT}")
    assert "is not in the cache" in cli.refuses("bench", bundle, "--checkpoint", "hf-hub:me/other")
    assert reference_weights(opened, f"hf-hub:me/three@{moved.name}") == moved / "model.safetensors"


def test_a_folder(cli: CommandLine) -> None:
    folder = cli.folder / "mine"
    folder.mkdir()
    arguments = {"depth": 2, "reg_tokens": 2}
    saved_by_timm(folder, "vit_tiny_patch16_224", img_size=32, **arguments)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_args": {"img_size": 32, **arguments}}))
    built = cli("build", "--model", "local-dir:mine", "--engine", "onnxruntime", "--json").json()
    name = "vit_tiny_patch16_224:depth=2,reg_tokens=2"
    assert Path(built["bundle"]).name == "vit_tiny_patch16_224_depth_2_reg_tokens_2-fp32"
    assert (built["model"]["name"], built["model"]["image_size"]) == (name, [32, 32])
    assert reference_model(load_bundle(built["bundle"])).reg_token.shape == (1, 2, 192)
    assert (built["preprocessing"]["size"], built["preprocessing"]["mean"]) == ([32, 32], [0.5, 0.5, 0.5])
    assert f"--checkpoint local-dir:{folder}" in built["command"]
    # a folder's or a file's config.json names the model too
    for path in (folder, folder / "model.safetensors", f"local-dir:{folder}"):
        request = BuildRequest(None, None, checkpoint=path).completed()
        assert (request.model, request.image_size) == (name, 32)
        assert request.checkpoint == folder / "model.safetensors"
