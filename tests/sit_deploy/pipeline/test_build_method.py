"""Slimming without training, from the command line and a teacher's checkpoint to a bundle that is checked and built again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sit_deploy.bundle import load_bundle
from sit_deploy.methods import MERGE, TRANSFORM
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.models.catalog import get_config
from sit_deploy.models.cost import cost
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.validation.reference import reference_model
from tests.helpers.command_line import CommandLine
from tests.helpers.models import named_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("half_the_blocks")]

STAGES = ("--stages", "1,1,1,1")
QUICK = ("--engine", "onnxruntime", "--image-size", "48", "--calib-images", "2")


@pytest.fixture
def taught(half_the_blocks: None, cli: CommandLine) -> Path:
    """An unslimmed model of 9 patches with its card."""
    model = named_model("lvvit_nano", img_size=48, num_classes=3)
    card = ModelCard("lvvit_nano", (4,), 0.5, (9,), 48, 3, Preprocessing.for_model(48))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("aux_head.")}
    save_weights(cli.folder / "teacher.safetensors", weights, card)
    return cli.folder / "teacher.safetensors"


def test_a_teachers_checkpoint_builds_at_once(
    cli: CommandLine, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--checkpoint", taught.name, "--method", TRANSFORM, *STAGES, *QUICK[:2], "--calib-images", "2")
    cli("build", "--model", "lvvit_nano", *options, "--dynamic-batch", "1:2:3", "-o", "b")
    facts = json.loads((cli.folder / "b" / "manifest.json").read_text(encoding="utf-8"))
    model = facts["model"]
    assert (model["name"], model["method"], model["tokens"]) == ("lvvit_nano", TRANSFORM, [9, 4, 2, 1])
    words = shlex.split(facts["command"])
    assert words[words.index("--method") + 1] == TRANSFORM and words[words.index("--stages") + 1] == "1,1,1,1"
    bundle = load_bundle(cli.folder / "b")
    reference = reference_model(bundle)
    assert [part.method for part in reference.reduction] == [TRANSFORM] * 3 and not hasattr(reference, "tsm")
    picture = cli.folder / "picture.png"
    _write_picture(picture)
    seen = cli("visualize", "b", picture.name, "-o", "seen", "--json").json()
    assert (seen[0]["tokens"], seen[0]["method"]) == ([9, 4, 2, 1], TRANSFORM)
    told = "9 → 4 → 2 → 1, by transform, without training"
    assert f"patch tokens: {told}" in cli("inspect", "b").out
    slimming = {"method": TRANSFORM, "stages": [1, 1, 1, 1], "tokens": [9, 4, 2, 1]}
    assert cli("inspect", "b", "--json").json()["slimming"] == slimming
    assert told in (cli.folder / "b" / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr("sit_deploy.validation.stages.SYNTHETIC", 4)
    assert f"Patch tokens: {told}" in cli("report", "b", "--rounds", 0, "-o", "r.md", "-o", "r.json").out
    assert told in (cli.folder / "r.md").read_text(encoding="utf-8")
    assert json.loads((cli.folder / "r.json").read_text())["bundles"][0]["slimming"] == slimming
    cli("validate", "b", "--json")


def test_a_named_student_is_its_teacher_slimmed(cli: CommandLine, taught: Path) -> None:
    """With the student's stages, where no others are said."""
    request = BuildRequest("sit_nano", None, checkpoint=taught, method=MERGE)
    done = request.completed()
    assert (done.model, done.stages, done.image_size) == ("lvvit_nano", (1, 1, 1, 1), 48)
    assert done.completed() == done
    result = cli(
        "export",
        "--model",
        "sit_nano",
        "--checkpoint",
        taught.name,
        "--method",
        MERGE,
        "-o",
        "m.onnx",
        "--json",
    )
    assert all(hop["passed"] for hop in result.json()["hops"])
    assert replace(request, method=TRANSFORM).config.method == TRANSFORM


def _write_picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)).save(path)


def test_what_is_refused(cli: CommandLine, taught: Path) -> None:
    message = cli.refuses("export", "--checkpoint", taught.name, *STAGES)
    assert message.endswith(
        "leave out --model, --stages and --keeping-ratio, or slim it without training: --method transform"
    )
    message = cli.refuses("export", "--checkpoint", taught.name, "--method", MERGE)
    assert message == (
        "lvvit_nano slims nothing, so there is nothing for --method merge to merge; pass its stages too, as --stages 1,1,1,1"
    )
    slimmed = named_model("sit_nano", img_size=48, num_classes=3)
    card = ModelCard("sit_nano", (1, 1, 1, 1), 0.5, (9, 4, 2, 1), 48, 3, Preprocessing.for_model(48))
    weights = {k: v for k, v in slimmed.state_dict().items() if not k.startswith("aux_head.")}
    save_weights(cli.folder / "student.safetensors", weights, card)
    message = cli.refuses("export", "--checkpoint", "student.safetensors", "--method", MERGE)
    assert "slimmed by what was trained for it; leave out --method" in message
    other = ("--model", "sit_micro", "--method", MERGE)
    message = cli.refuses("export", "--checkpoint", taught.name, *other)
    assert "is a lvvit_nano by its model card, and sit_micro is made of a lvvit_micro" in message
    # without cards, the weights tell
    (cli.folder / "bare").mkdir()
    for name in ("teacher", "student"):
        save_file(load_file(cli.folder / f"{name}.safetensors"), cli.folder / "bare" / f"{name}.safetensors")
    bare = ("--checkpoint", "bare/student.safetensors", "--image-size", "48")
    message = cli.refuses("export", "--model", "lvvit_nano", *STAGES, "--method", MERGE, *bare)
    assert "leave out --method" in message or "looks like sit_nano" in message
    bare = ("--checkpoint", "bare/teacher.safetensors", "--image-size", "48")
    assert "--method transform" in cli.refuses("export", "--model", "lvvit_nano", *STAGES, *bare)


def test_what_it_costs() -> None:
    """Fewer multiply-accumulates than the teacher's, and no parameter more."""
    teacher = cost(get_config("lvvit_s"))
    for method in (TRANSFORM, MERGE):
        slimmed = cost(get_config("sit_s", method=method))
        assert slimmed.parameters == teacher.parameters
        assert abs(slimmed.macs / cost(get_config("sit_s")).macs - 1) < 0.05
    deep = get_config("lvvit_s", (8, 8), kept=(196, 20), method=MERGE)  # merged four times at once
    assert cost(deep).macs > cost(replace(deep, method=TRANSFORM)).macs
