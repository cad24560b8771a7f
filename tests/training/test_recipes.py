"""Recipes against the published ones, and values that no training can have."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from sit_deploy.errors import InputError
from training.recipes import (
    DIGITS_STUDENT,
    DIGITS_TEACHER,
    STUDENTS,
    Recipe,
    default_text,
    option_name,
    recipe_for,
)

# arXiv 2111.12624, appendix, and the published scripts; the models differ in the two values below alone
PAPER = {
    "epochs": 125,
    "cooldown_epochs": 10,
    "warmup_epochs": 0,
    "batch_size": 128,
    "lr": 2e-4,
    "min_lr": 1e-5,
    "lr_per_step": False,
    "rtsm_lr_scale": 5.0,
    "weight_decay": 0.05,
    "clip_grad": 0.0,
    "ema_decay": 0.0,
    "token_weight": 2.0,
    "logits_weight": 2.0,
    "temperature": 1.0,
    "hard_label_weight": 0.0,
    "smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "color_jitter": 0.4,
    "erasing": 0.25,
    "repeats": 3,
    "flip": 0.5,
    "min_scale": 0.08,
    "min_ratio": 0.75,
    "rotation": 0.0,
    "crop_pct": 0.0,
}
ONE, THREE = "rand-m9-mstd0.5-inc1", "rand-n3-m9-mstd0.5-inc1"
OWN = {
    "sit_t": (0.0, ONE),
    "sit_xs": (0.1, ONE),
    "sit_s": (0.1, ONE),
    "sit_m": (0.1, ONE),
    "sit_l": (0.3, THREE),
}


@pytest.mark.parametrize("name", OWN)
def test_students_have_the_recipes_of_the_paper(name: str) -> None:
    drop_path, policy = OWN[name]
    recipe = recipe_for(name, distils=True, from_checkpoint=False, data="imagenet/")
    assert asdict(recipe) == {**PAPER, "drop_path": drop_path, "auto_augment": policy}


def test_a_student_without_a_recipe_takes_that_of_sit_s() -> None:
    other = recipe_for("sit_deit_s", distils=True, from_checkpoint=True, data="flowers/")
    assert other == STUDENTS["sit_s"]


def test_teachers_learn_from_labels_as_deit_does() -> None:
    """DeiT: 300 epochs, 5 of warm-up, 5e-4 at a total batch of 512."""
    scratch = recipe_for("lvvit_s", distils=False, from_checkpoint=False, data="imagenet/")
    assert (scratch.epochs, scratch.warmup_epochs, scratch.lr) == (300, 5, 5e-4)
    tuned = recipe_for("lvvit_s", distils=False, from_checkpoint=True, data="imagenet/")
    assert tuned.epochs < scratch.epochs and tuned.lr < scratch.lr


def test_digits_have_recipes_of_their_own_that_keep_a_digit_what_it_is() -> None:
    assert recipe_for("lvvit_nano", distils=False, from_checkpoint=True, data="digits") == DIGITS_TEACHER
    assert recipe_for("sit_s", distils=True, from_checkpoint=False, data="digits") == DIGITS_STUDENT
    for recipe in (DIGITS_TEACHER, DIGITS_STUDENT):
        assert (recipe.flip, recipe.erasing, recipe.auto_augment) == (0, 0, "")
        assert recipe.rotation < 20 and recipe.min_scale > 0.5  # a 6 stays a 6, and whole


def test_every_shipped_recipe_passes_its_own_check() -> None:
    for recipe in (*STUDENTS.values(), DIGITS_TEACHER, DIGITS_STUDENT):
        recipe.check()
    for from_checkpoint in (False, True):
        recipe_for("lvvit_s", distils=False, from_checkpoint=from_checkpoint, data="imagenet/").check()


@pytest.mark.parametrize("entry", fields(Recipe), ids=lambda f: f.name)
def test_every_field_says_what_it_is(entry: Any) -> None:
    text = entry.metadata["help"]
    assert len(text) > 10 and text.endswith(".") and "\n" not in text
    assert entry.type in ("int", "float", "str", "bool")  # what the command line has options for


def test_option_names() -> None:
    assert option_name("rtsm_lr_scale") == "--rtsm-lr-scale"


NUMBERS = tuple(f.name for f in fields(Recipe) if f.type in ("int", "float"))
SHARES = ("drop_path", "smoothing", "erasing", "flip", "ema_decay")


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as error:
        replace(Recipe(), **changes).check()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NUMBERS)
def test_negative_numbers_are_refused_by_name(name: str) -> None:
    assert refusal(**{name: -1}).startswith(f"{option_name(name)} must be ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [f.name for f in fields(Recipe) if f.type == "float"])
def test_what_is_no_finite_number_is_refused_by_name(name: str, value: float) -> None:
    assert refusal(**{name: value}).startswith(f"{option_name(name)} must be ")


@pytest.mark.parametrize("name", SHARES)
def test_shares_are_below_one(name: str) -> None:
    assert refusal(**{name: 1.0}) == f"{option_name(name)} must be from 0 to below 1, got 1"
    replace(Recipe(), **{name: 0.999}).check()


@pytest.mark.parametrize(
    "name", ["epochs", "batch_size", "repeats", "lr", "temperature", "min_scale", "min_ratio"]
)
def test_zero_is_refused_where_nothing_would_be_learnt(name: str) -> None:
    assert refusal(**{name: 0}).startswith(f"{option_name(name)} must be ")


@pytest.mark.parametrize("name", ["min_scale", "min_ratio", "crop_pct"])
def test_shares_of_a_picture_are_at_most_one(name: str) -> None:
    message = refusal(**{name: 1.01})
    assert message.startswith(f"{option_name(name)} must be ") and message.endswith("at most 1, got 1.01")
    replace(Recipe(), **{name: 1.0}).check()


def test_warm_up_must_leave_an_epoch() -> None:
    message = refusal(epochs=3, warmup_epochs=3)
    assert message == "--warmup-epochs 3 leaves none of the 3 epochs; pass fewer"
    replace(Recipe(), epochs=3, warmup_epochs=2).check()


def test_epochs_that_leave_no_room_for_the_warm_up_shorten_it() -> None:
    """Where it was not asked for; a warm-up that was is refused instead."""
    scratch = recipe_for("lvvit_s", distils=False, from_checkpoint=False, data="flowers/")
    for epochs, warm_up in ((1, 0), (4, 0), (5, 1), (6, 5), (300, 5)):
        made = scratch.with_values({"epochs": epochs})
        made.check()
        assert made.warmup_epochs == warm_up
    assert "leaves none of the 3 epochs" in refusal(
        **asdict(scratch.with_values({"epochs": 3, "warmup_epochs": 5}))
    )


def test_a_rate_below_the_end_of_the_cosine_takes_the_end_along() -> None:
    made = Recipe().with_values({"lr": 2e-6})
    made.check()
    assert made.min_lr == pytest.approx(2e-6 / 20)
    assert Recipe().with_values({"lr": 1e-4}).min_lr == 1e-5
    message = refusal(lr=1e-5, min_lr=1e-4)
    assert message == (
        "--min-lr 0.0001, where the learning rate ends, is above --lr 1e-05, where it starts; pass a smaller one"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 10**9),
        ("cooldown_epochs", 2**63),
        ("batch_size", 2**63),
        ("repeats", 10**6),
        ("epochs", 10**400),
    ],
)
def test_numbers_beyond_all_use_are_refused(name: str, value: int) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{option_name(name)} must be at most ") and len(message) < 100


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", "3", "a whole number"), ("epochs", 3.0, "a whole number"), ("batch_size", True, "a whole number"),
        ("lr", "0.1", "a number"), ("lr", None, "a number"), ("lr_per_step", 1, "true or false"), ("auto_augment", None, "a text"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(name: str, value: Any, wanted: str) -> None:
    assert refusal(**{name: value}) == f"{option_name(name)} must be {wanted}, got {value!r}"


@pytest.mark.parametrize("off", ["mixup", "cutmix"])
def test_pictures_are_mixed_in_pairs(off: str) -> None:
    """Either of the two is enough for a batch to be even."""
    message = refusal(batch_size=5, **{off: 0.0})
    assert re.match(r"--batch-size 5 is odd, .*--mixup 0 --cutmix 0$", message)
    replace(Recipe(), batch_size=5, mixup=0.0, cutmix=0.0).check()


# ----------------------------------------------------------------------------------------------------- help's defaults


def test_defaults_of_help_name_those_that_differ() -> None:
    assert (
        default_text("epochs") == "125; teachers 300; teachers with --init 30; digits 12; digits' students 8"
    )
    assert default_text("auto_augment") == "rand-m9-mstd0.5-inc1; sit_l rand-n3-m9-mstd0.5-inc1; digits none"
    assert default_text("lr_per_step") == "off; digits on"
    assert default_text("weight_decay") == "0.05"


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe)])
def test_no_model_has_a_default_that_help_does_not_name(name: str) -> None:
    said = default_text(name)
    for model, recipe in STUDENTS.items():
        assert (f"; {model} " in said) == (getattr(recipe, name) != getattr(Recipe(), name))
    assert option_name(name).startswith("--")
