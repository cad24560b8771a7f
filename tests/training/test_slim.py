"""Slimming without labels, whole: what is compared, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sit_deploy.errors import InputError
from sit_deploy.models.card_file import read_card
from sit_deploy.models.load import load_model
from sit_deploy.preprocessing import load_image
from tests.helpers.train import differences
from training.reporter import Silent
from training.seeding import FIT, permutation
from training.slim import Pictures, slim
from training.slim_request import SlimRequest

pytestmark = pytest.mark.usefixtures("small_nano")


def request(teacher: Path, pictures: Path, output: Path, **options: Any) -> SlimRequest:
    values = {
        "checkpoint": teacher / "model.safetensors",
        "batch_size": 8,
        "steps": 40,
        "device": "cpu",
        **options,
    }
    return SlimRequest("sit_nano", pictures / "train", output, **values)


@pytest.mark.slow
def test_images_that_cannot_be_read_are_in_no_figure(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    """What stands in for them counts once, as itself."""
    pictures = Path(shutil.copytree(wide_pictures, tmp_path / "pictures"))
    files = sorted((pictures / "train").rglob("*.png"))
    order = [files[i] for i in permutation(len(files), FIT, 0)]
    bad = [order[1], order[10], next((pictures / "val").rglob("*.png"))]
    for file in bad:
        file.write_bytes(b"no picture")
    told: list[str] = []

    class Told(Silent):
        def warn(self, text: str) -> None:
            told.append(text)

    asked = request(teacher, pictures, tmp_path / "student.safetensors", val_data=str(pictures / "val"))
    result = slim(asked, Told())
    assert (result.images, result.held_out, result.damaged_images, result.labelled) == (43, 3, 2, 28)
    assert any(result.end.same == pytest.approx(100 * same / 3) for same in range(4))
    damaged = [text for text in told if "cannot be read" in text]
    assert len(damaged) == 3 and all(any(f.name in text for text in damaged) for f in bad)


@pytest.mark.slow
def test_a_student_and_its_card(wide_pictures: Path, teacher: Path, tmp_path: Path) -> None:
    """The backbone is the teacher's to the bit, the student agrees with it better than at its start, and the file says what it is."""
    file = tmp_path / "student.safetensors"
    result = slim(request(teacher, wide_pictures, file, val_data=str(wide_pictures / "val")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "student.safetensors"]
    taught = load_model("lvvit_nano", teacher / "model.safetensors", 48).model.state_dict()
    loaded = load_model("sit_nano", file, 48)
    weights = loaded.model.state_dict()
    assert {k for k in weights if k not in taught} == {k for k in weights if k.startswith("tsm.")}
    assert all(torch.equal(weights[k], taught[k]) for k in taught if not k.startswith("aux_head."))

    assert (result.images, result.held_out, result.labelled, result.fit.steps) == (44, 4, 29, 40)
    assert result.end.kl < result.start.kl and result.fit.last_loss < result.fit.first_loss
    card, theirs = read_card(file), read_card(teacher / "model.safetensors")
    assert card is not None and theirs is not None
    assert (card.name, card.tokens, card.stages) == ("sit_nano", result.tokens, (1, 1, 1, 1))
    assert (card.classes, card.preprocessing) == (theirs.classes, theirs.preprocessing)
    assert card.metrics["top1"] == result.top1 and card.metrics["agreement"] == result.end.same
    assert json.loads((tmp_path / "student.json").read_text()) == card.to_dict()
    # the accuracy that is told is the file's
    samples = [
        (p, label)
        for label, name in enumerate(card.classes or ())
        for p in sorted((wide_pictures / "val" / name).iterdir())
    ]
    pixels = torch.stack([torch.from_numpy(card.preprocessing(load_image(p))) for p, _ in samples])
    with torch.no_grad():
        right = loaded.model(pixels).argmax(1) == torch.tensor([label for _, label in samples])
    assert result.top1 == pytest.approx(100 * right.float().mean().item())


@pytest.mark.slow
def test_the_same_request_gives_the_same_file(wide_pictures: Path, teacher: Path, tmp_path: Path) -> None:
    wanted = request(teacher, wide_pictures, tmp_path / "a.safetensors", steps=4)
    slim(wanted)
    first = load_model("sit_nano", tmp_path / "a.safetensors", 48).model.state_dict()
    slim(replace(wanted, force=True))
    again = load_model("sit_nano", tmp_path / "a.safetensors", 48).model.state_dict()
    assert differences(first, again) == []


@pytest.mark.slow
def test_agreement_of_a_model_that_always_says_the_same_is_in_doubt(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    """The student agrees with it whatever it does."""
    (tmp_path / "train").mkdir()
    for i in range(100):
        Image.new("RGB", (48, 48), (200, 30, 30)).save(tmp_path / "train" / f"{i}.png")
    result = slim(request(teacher, tmp_path, tmp_path / "a.safetensors", steps=1))
    assert result.end.same == 100.0 and result.start.classes == 1
    assert "agreement says nothing; check the weights, the preprocessing (--mean, --std)" in str(result.doubt)
    assert result.to_dict()["doubt"] == result.doubt
    sound = replace(result, start=replace(result.start, classes=2))
    assert sound.doubt is None


@pytest.mark.slow
def test_what_ends_it_leaves_nothing(
    wide_pictures: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(share: float, step: int, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.reporter.Silent.fitting", staticmethod(stop))
    with pytest.raises(KeyboardInterrupt):
        slim(request(teacher, wide_pictures, tmp_path / "a.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_fitted(
    wide_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(tmp_path, wide_pictures, tmp_path / "a.safetensors", checkpoint=None, pretrained=True)
    monkeypatch.setattr("training.slim_request.os.access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written to; choose another -o"):
        wanted.destination("sit_nano")


@pytest.mark.slow
def test_one_output_is_slimmed_as_two_and_few_images_tell_nothing(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    weights = load_file(teacher / "model.safetensors")
    one = {key: value[:1].clone() if "head." in key else value for key, value in weights.items()}
    save_file(one, tmp_path / "one.safetensors")
    wanted = request(
        teacher,
        wide_pictures,
        tmp_path / "a.safetensors",
        checkpoint=tmp_path / "one.safetensors",
        steps=1,
        image_size=48,
    )
    with pytest.raises(InputError, match="pass --num-classes 2"):
        slim(wanted)
    result = slim(replace(wanted, num_classes=2))
    assert load_model("sit_nano", result.weights, 48).model.num_classes == 2
    assert "agreement is that of 4 images kept apart" in str(result.doubt)


@pytest.mark.slow
def test_seconds_that_suffice_for_nothing_are_said(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    slim(request(teacher, wide_pictures, tmp_path / "a.safetensors", seconds=1e-6, steps=None), Notes())
    assert any("1 step in" in note and "pass more --seconds" in note for note in notes)
    notes.clear()
    slim(request(teacher, wide_pictures, tmp_path / "b.safetensors", steps=1), Notes())
    assert not any("fit next to nothing" in note for note in notes)


def test_pictures_are_decoded_when_they_are_asked_for(wide_pictures: Path) -> None:
    path = next((wide_pictures / "val" / "ant").iterdir())
    made = Pictures([(path, 3)])
    image, label = made[0]
    assert (image.size, label, made.describe(0)) == ((48, 48), 3, str(path))
