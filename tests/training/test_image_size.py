"""The size of the images of a run, and how they are prepared: as its weights were trained, unless somebody says otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.made_models import SIZE, Save, make, refusal, state_of
from training.make_models import Models

pytestmark = pytest.mark.usefixtures("small_nano", "small_vits")


def test_a_student_sees_the_pixels_that_its_teacher_sees(save: Save) -> None:
    """timm's vit_tiny takes images normalised by 0.5; the card of this one says ImageNet's mean."""
    name = "vit_tiny_patch16_224"
    models = make(name, stages=(3, 3), teacher=save(name))
    assert models.preprocessing.mean == (0.485, 0.456, 0.406)
    assert models.choice.sources["mean"] == "the model card"
    assert models.choice.sources["crop_pct"] == models.choice.sources["orientation"] == "the model card"
    half = (0.5, 0.5, 0.5)
    message = refusal(name, stages=(3, 3), teacher=save(name), mean=half)
    assert "sees images of mean (0.485, 0.456, 0.406)" in message and f"{name} of {half}" in message
    assert "--mean and --std" in message


def test_options_say_how_pictures_are_prepared_in_training(save: Save) -> None:
    path = save(card=False)
    values = {
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "lanczos",
        "orientation": "stored",
    }
    models = make("lvvit_nano", init=path, **values)
    ours = models.preprocessing
    assert (ours.mean, ours.std, ours.interpolation, ours.orientation) == tuple(values.values())
    assert models.choice.sources["mean"] == "the options"
    # a teacher that says nothing itself is taken at the user's word
    assert make(teacher=path, **values).preprocessing == ours
    assert "--mean" in refusal("lvvit_nano", mean=(123.7, 116.3, 103.5))


def note(models: Models, words: str) -> str:
    [found] = [text for text in models.notes if words in text]
    assert "\n" not in found
    return found


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("role", ["teacher", "init"])
def test_the_image_size_is_that_of_the_checkpoint(role: str, card: bool, save: Save) -> None:
    """Of its card, or of the grid of its positions; it used to be the model's own, whatever the teacher was trained at."""
    path = save(size=64, card=card)
    name = "sit_nano" if role == "teacher" else "lvvit_nano"
    models = make(name, image_size=None, **{role: path})
    assert models.preprocessing.size == models.model.img_size == (64, 64)
    said = note(models, "Image size 64")
    assert ("model card" if card else "position embedding") in said and str(path) in said and "48" in said
    assert torch.equal(models.model.pos_embed, state_of(path)["pos_embed"])


def test_the_native_size_needs_no_words(save: Save) -> None:
    models = make("lvvit_nano", image_size=None, init=save(card=False))
    assert models.preprocessing.size == (48, 48) and models.notes == ()
    assert make("lvvit_nano", image_size=None).notes == ()


def test_another_size_than_the_teacher_s_is_said(save: Save) -> None:
    path = save(size=64)
    assert f"teacher {path} is of 64 pixels" in note(
        make(teacher=path, image_size=96), "positions are resampled"
    )
    student = save("sit_nano", size=48)
    models = make(teacher=path, init=student, image_size=None)
    assert models.preprocessing.size == (64, 64)
    assert f"checkpoint {student} is of 48 pixels" in note(models, "positions are resampled")


def test_a_size_that_cannot_be_told(save: Save, tmp_path: Path) -> None:
    """As of positions without a square grid."""
    path = save(card=False)
    state = state_of(path)
    state["pos_embed"] = state["pos_embed"][:, :-2]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="does not fit lvvit_nano"):  # said in words of weights, not of sizes
        make("lvvit_nano", image_size=None, init=tmp_path / "odd.pth")


@pytest.mark.parametrize("prefix", ["deit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_the_size_of_a_vision_transformer_of_timm(prefix: str, save: Save) -> None:
    """With a position for the class token, and without."""
    path = save(prefix, card=False, size=96)
    assert make(prefix, image_size=None, init=path).preprocessing.size == (96, 96)


def test_a_student_sees_what_its_teacher_saw(save: Save) -> None:
    """The card of this one says another crop than vit_tiny's own, and pixels as stored; an option goes before it."""
    name = "vit_tiny_patch16_224"
    path = save(name)
    models = make(name, stages=(3, 3), teacher=path)
    assert models.preprocessing == Preprocessing.for_model(SIZE)
    assert set(models.choice.sources.values()) == {"the model card"}
    asked = make(name, stages=(3, 3), teacher=path, overrides=(("crop_pct", 0.5),))
    assert asked.preprocessing == replace(Preprocessing.for_model(SIZE), resize=96)


def test_a_start_keeps_its_mean_and_learns_to_see_turned_pictures(save: Save) -> None:
    name = "vit_tiny_patch16_224"
    models = make(name, init=save(name))
    assert (models.preprocessing.mean, models.preprocessing.orientation) == ((0.485, 0.456, 0.406), "exif")
