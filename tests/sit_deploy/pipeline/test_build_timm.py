"""A slimmed vision transformer of timm, trained and with a model card, from the file alone to a bundle that is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sit_deploy.bundle import load_bundle
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.errors import InputError
from sit_deploy.models import create_model, get_config
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.validation.reference import reference_model
from tests.helpers.command_line import CommandLine
from tests.helpers.models import randomise, smaller_vits

pytestmark = pytest.mark.slow

NAME, STAGES, SIZE = "vit_tiny_patch16_224", (3, 1, 1, 1), 64
CLASSES = ("cat", "dog", "hen")


@dataclass(frozen=True)
class WithCard:
    """Weights with a card, the model they are of, labelled images, and the bundle built of nothing but the file."""

    checkpoint: Path
    card: ModelCard
    model: Any
    images: Path
    bundle: Path


@pytest.fixture(scope="module", autouse=True)
def half_as_large() -> Iterator[None]:
    with smaller_vits():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> WithCard:
    from sit_deploy.pipeline.build import build

    folder = tmp_path_factory.mktemp("timm")
    model = create_model(get_config(NAME, STAGES, 0.6), img_size=SIZE, num_classes=3)
    randomise(model).eval()
    card = ModelCard(
        NAME, STAGES, 0.6, model.kept, SIZE, 3, Preprocessing((SIZE, SIZE), 80, "bilinear", (0.4,) * 3, (0.3,) * 3),
        classes=CLASSES, metrics={"top1": 12.5},
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model.state_dict(), card)
    for index, image in enumerate(synthetic_images(6, size=(100, 90))):
        place = folder / "images" / CLASSES[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index}.png")
    request = BuildRequest(
        None, folder / "bundle", checkpoint=folder / "model.safetensors", engine="onnxruntime"
    )
    build(request)
    return WithCard(request.checkpoint, card, model, folder / "images", folder / "bundle")


def test_the_card_says_what_to_build(made: WithCard) -> None:
    manifest = json.loads((made.bundle / "manifest.json").read_text(encoding="utf-8"))
    facts = manifest["model"]
    assert (facts["name"], facts["stages"], facts["keeping_ratio"]) == (NAME, list(STAGES), 0.6)
    assert (facts["image_size"], facts["num_classes"], facts["tokens"]) == ([64, 64], 3, [16, 9, 5, 3])
    assert manifest["classes"] == list(CLASSES)
    assert manifest["preprocessing"] == made.card.preprocessing.to_dict()
    hops = json.loads((made.bundle / "report.json").read_text(encoding="utf-8"))["hops"]
    assert [hop["name"] for hop in hops] == ["deploy form", "ONNX fp32", "onnxruntime engine"]
    assert all(hop["passed"] and hop["error"] < 2e-5 for hop in hops)
    for words in (f"--model {NAME}", "--stages 3,1,1,1", "--keeping-ratio 0.6", "--image-size 64"):
        assert words in manifest["command"]


@torch.no_grad()
def test_the_engine_gives_the_models_own_logits(made: WithCard) -> None:
    import sit_deploy

    images = synthetic_images(3, size=(90, 120))
    prepared = torch.from_numpy(np.stack([made.card.preprocessing(image) for image in images]))
    expected = made.model(prepared).numpy()
    with sit_deploy.load(made.bundle) as classify:
        found = classify(images)
    assert np.abs(found - expected).max() < 2e-5 * expected.std()


def test_the_reference_is_the_same_model(made: WithCard) -> None:
    model = reference_model(load_bundle(made.bundle))
    assert (model.stage_blocks, model.kept, model.img_size) == (STAGES, (16, 9, 5, 3), (64, 64))
    saved = made.model.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_validate_and_predict(made: WithCard, cli: CommandLine) -> None:
    result = cli("validate", made.bundle, "--data", made.images, "--json").json()
    assert result["accuracy"]["agreement"] == 100.0
    (found,) = cli("predict", made.bundle, made.images / "cat" / "0.png", "--json").json()
    assert {row["name"] for row in found["classes"]} == set(CLASSES)


def request(made: WithCard, **fields: Any) -> BuildRequest:
    return BuildRequest(**{"model": None, "output": Path("out"), "checkpoint": made.checkpoint, **fields})


def test_what_the_user_says_besides(made: WithCard) -> None:
    """An option that agrees with the card changes nothing; another image size is taken."""
    plain = request(made).completed()
    assert (plain.model, plain.stages, plain.keeping_ratio, plain.image_size) == (NAME, STAGES, 0.6, SIZE)
    assert plain.completed() == plain
    assert request(made, model=NAME, stages=STAGES, keeping_ratio=0.6).completed() == plain
    assert request(made, image_size=96).completed() == replace(plain, image_size=96)


def test_tokens_that_are_the_cards_and_others(made: WithCard) -> None:
    """Kept tokens say what a ratio does too; another image size has other patches, and the same tokens behind them."""
    same = request(made, kept=(16, 9, 5, 3)).completed()
    assert (same.stages, same.keeping_ratio, same.kept) == (STAGES, None, (16, 9, 5, 3))
    with pytest.raises(InputError) as caught:
        request(made, kept=(16, 9, 5, 2)).completed()
    assert str(caught.value).endswith(
        f"is a {NAME} of stages 3,1,1,1 keeping 16,9,5,3 tokens by its model card, not the {NAME} of stages 3,1,1,1 keeping 16,9,5,2 tokens "
        "asked for; leave out --model, --stages and --kept"
    )


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"model": "sit_s"}, "sit_s of stages 3,1,1,1 and keeping ratio 0.6"),
        ({"stages": (2, 2, 1, 1)}, f"{NAME} of stages 2,2,1,1 and keeping ratio 0.6"),
        ({"keeping_ratio": 0.5}, f"{NAME} of stages 3,1,1,1 and keeping ratio 0.5"),
    ],
)
def test_what_contradicts_the_card_is_refused(made: WithCard, fields: dict[str, Any], asked: str) -> None:
    with pytest.raises(InputError) as caught:
        request(made, **fields).completed()
    message = str(caught.value)
    assert (
        f"is a {NAME} of stages 3,1,1,1 and keeping ratio 0.6 by its model card, not the {asked} asked"
        in message
    )
    assert "\n" not in message


def test_labels_and_image_size_override_the_card(made: WithCard, tmp_path: Path) -> None:
    from sit_deploy.pipeline.float_graph import load_request
    from sit_deploy.pipeline.work import Work

    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    asked = request(made, labels=tmp_path / "labels.txt", image_size=96).completed()
    work = Work(asked, lambda *_: None)
    loaded, choice, classes = load_request(work)
    assert (loaded.model.img_size, classes) == ((96, 96), ["a", "b", "c"])
    # the crop keeps its share: 64 of 80, and 96 of 120
    assert choice.preprocessing == replace(made.card.preprocessing, size=(96, 96), resize=120)
    assert any("positions resampled from 4x4 to 6x6" in note for note in work.notes)


def test_the_command_line_takes_the_name_from_the_card(
    made: WithCard, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    graph = onnx.load(made.bundle / "model.onnx")  # exporting it again takes seconds
    monkeypatch.setattr("sit_deploy.pipeline.float_graph._export", lambda *_: graph)
    shutil.copy(made.checkpoint, cli.folder / "model.safetensors")
    result = cli("export", "--checkpoint", "model.safetensors", "--calib-images", "2", "--json").json()
    assert Path(result["model"]).name == f"{NAME}.onnx"
    assert all(hop["passed"] for hop in result["hops"])
    wrong = cli.refuses("build", "--checkpoint", "model.safetensors", "--model", "sit_nano")
    assert "by its model card, not the sit_nano of stages" in wrong


def test_without_a_card_the_preprocessing_is_timms(tmp_path: Path) -> None:
    from sit_deploy.pipeline.float_graph import load_request
    from sit_deploy.pipeline.work import Work

    work = Work(BuildRequest(NAME, tmp_path, image_size=32, num_classes=4), lambda *_: None)
    loaded, choice, classes = load_request(work)
    assert choice.preprocessing == Preprocessing((32, 32), 35, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert (loaded.model.kept, classes) == ((4,), None)
    assert len(work.notes) == 1 and "random weights (seed 0)" in work.notes[0]


def test_images_that_were_squeezed_are_squeezed(tmp_path: Path) -> None:
    from sit_deploy.pipeline.float_graph import load_request
    from sit_deploy.pipeline.work import Work

    request = BuildRequest("vit_medium_patch16_gap_384", tmp_path, image_size=32)
    work = Work(request, lambda *_: None)
    assert load_request(work)[1].preprocessing.crop_mode == "squash"
    assert len(work.notes) == 1 and "random weights (seed 0)" in work.notes[0]
    choice = load_request(Work(replace(request, crop_mode="center"), lambda *_: None))[1]
    assert (choice.preprocessing.crop_mode, choice.sources["crop_mode"]) == ("center", "the options")


def test_a_models_own_size_need_not_be_a_multiple_of_its_patches(cli: CommandLine) -> None:
    """SigLIP's 384 pixels of 14: 27 patches a side, and 6 pixels that none sees; another such size is refused."""
    name = "vit_so400m_patch14_siglip_gap_384:depth=2,embed_dim=32,num_heads=2"  # halved here
    words = ("--model", name, "--stages", "1", "--calib-images", "2", "--engine", "onnxruntime", "-o", "own")
    cli("build", *words)
    bundle = load_bundle(cli.folder / "own")
    assert (bundle.manifest.model.image_size, bundle.manifest.model.tokens) == ((384, 384), [27 * 27])
    message = cli.refuses("build", *words, "--image-size", "398")
    assert message == "image size 398 is not a positive multiple of 14; take 392 or 406"
