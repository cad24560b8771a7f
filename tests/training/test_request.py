"""What a run is asked to be: the recipe in it, what is refused at once, and what makes it the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, get_config
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.hub import COMMIT, CONFIG
from training.recipes import DIGITS_STUDENT, DIGITS_TEACHER, STUDENTS, Recipe
from training.request import TrainRequest

BASE = TrainRequest("sit_s", "imagenet/", Path("runs/x"), teacher=Path("teacher.pth"))


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as error:
        replace(BASE, **changes).check()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_recipe_is_that_of_the_model_with_the_user_s_values_in_it() -> None:
    assert BASE.recipe == STUDENTS["sit_s"]
    asked = replace(BASE, model="sit_l", overrides=(("epochs", 3), ("lr_per_step", True)))
    assert asked.recipe == replace(STUDENTS["sit_l"], epochs=3, lr_per_step=True)
    assert replace(BASE, model="sit_lvvit_tiny").recipe == STUDENTS["sit_t"]  # the official name
    deit = replace(BASE, model="deit_tiny_patch16_224", stages=(6, 2, 2, 2))
    assert deit.recipe == STUDENTS["sit_s"]


def test_the_recipe_of_a_teacher_depends_on_its_start() -> None:
    scratch = replace(BASE, model="lvvit_s", teacher=None)
    assert scratch.recipe.epochs == 300
    assert replace(scratch, init=Path("lvvit_s.pth")).recipe.epochs < 300
    assert replace(scratch, data="digits").recipe == DIGITS_TEACHER
    assert replace(BASE, data="digits").recipe == DIGITS_STUDENT


def test_an_unknown_value_of_the_recipe_is_named_with_the_nearest() -> None:
    assert refusal(overrides=(("epoch", 3),)) == "a recipe has no 'epoch'; did you mean 'epochs'?"


def test_models_by_place_start_from_its_weights(cached: Callable[..., Path]) -> None:
    snapshot = cached("me/vit", CONFIG, "model.safetensors")
    place, file = f"hf-hub:me/vit@{COMMIT}", snapshot / "model.safetensors"
    base = TrainRequest("hf-hub:me/vit", "pets/", None)
    named = base.named()
    assert (named.model, named.init, named.teacher) == ("vit_tiny_patch16_224", Path(place), None)
    assert named.output == Path("runs/vit_tiny_patch16_224")
    assert named.named() == named
    assert named.fetched() == replace(named, init=file)
    # --init says otherwise; what is slimmed starts from its teacher anyway, if that is the same
    assert replace(base, init=Path("a.pth")).named().init == Path("a.pth")
    taught = replace(base, stages=(6, 2, 2, 2), teacher=Path("hf-hub:me/vit@main")).named()
    assert (taught.init, taught.teacher) == (None, Path(place))
    assert taught.fetched().teacher == file
    assert replace(base, teacher=Path("t.pth")).named().init == Path(place)


def test_pretrained_starts_from_timm_s_weights(cached: Callable[..., Path]) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    snapshot = cached(f"timm/{name}", CONFIG, "model.safetensors")
    request = TrainRequest(name, "pets/", Path("out"), pretrained=True).named().fetched()
    assert (request.model, request.init) == (name, snapshot / "model.safetensors")


def test_a_model_card_in_a_repository_names_the_model(cached: Callable[..., Path]) -> None:
    snapshot = cached("me/sit", None)
    card = ModelCard("sit_nano", (5, 1, 1, 1), 0.5, (9, 4, 2, 1), 48, 2, Preprocessing.for_model(48))
    state = create_model(get_config("sit_nano", card.stages), img_size=48, num_classes=2).state_dict()
    save_weights(snapshot / "model.safetensors", state, card)
    named = TrainRequest("hf-hub:me/sit", "pets/", None).named()
    assert (named.model, named.stages, named.output) == ("sit_nano", (5, 1, 1, 1), Path("runs/sit_nano"))
    assert named.fetched().init == snapshot / "model.safetensors"
    built = BuildRequest("hf-hub:me/sit", None).completed()
    assert (built.model, built.stages, built.image_size) == ("sit_nano", (5, 1, 1, 1), 48)
    assert built.fetched_from == f"hf-hub:me/sit@{COMMIT}"


def test_a_card_of_tokens_gives_them_where_nothing_else_is_said(cached: Callable[..., Path]) -> None:
    snapshot = cached("me/sit", None)
    card = ModelCard("sit_nano", (5, 1, 1, 1), None, (9, 7, 3, 2), 48, 2, Preprocessing.for_model(48))
    config = get_config("sit_nano", card.stages, kept=card.kept)
    save_weights(
        snapshot / "model.safetensors",
        create_model(config, img_size=48, num_classes=2).state_dict(),
        card,
    )
    base = TrainRequest("hf-hub:me/sit", "pets/", None)
    named = base.named()
    assert (named.stages, named.keeping_ratio, named.kept) == ((5, 1, 1, 1), None, (9, 7, 3, 2))
    assert replace(base, image_size=64).named().kept == (16, 7, 3, 2)
    assert replace(base, keeping_ratio=0.5).named().kept is None
    assert replace(base, stages=(2, 2, 2, 2)).named().kept is None


def test_good_requests_pass() -> None:
    BASE.check()
    replace(BASE, amp="bf16", accumulate=4, max_damaged=0, workers=0, seed=7).check()
    replace(BASE, cnn_teacher="resnet50", cnn_checkpoint=Path("r.pth")).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": (("lr", 0.0),)}, "--lr must be above 0"),
        ({"overrides": (("batch_size", 0),)}, "--batch-size must be at least 1, got 0"),
        ({"amp": "int8"}, "--amp 'int8' is not offered; choose from auto, off, bf16, fp16"),
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0"),
        ({"save_every": 0}, "--save-every must be at least 1, got 0"),
        ({"log_every": -2}, "--log-every must be at least 1, got -2"),
        ({"max_damaged": -1}, "--max-damaged must be at least 0, got -1"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"cnn_teacher": "resnet50"}, "--cnn-teacher and --cnn-checkpoint go together"),
        ({"cnn_checkpoint": Path("r.pth")}, "--cnn-teacher and --cnn-checkpoint go together"),
        (
            {"teacher": None, "cnn_teacher": "resnet50", "cnn_checkpoint": Path("r.pth")},
            "--cnn-teacher is an extra teacher; pass the first one with --teacher",
        ),
        ({"mean": (124.0, 116.0, 104.0)}, "--mean is of values from 0 to 1"),
        ({"orientation": "upright"}, "--orientation upright is not offered"),
        ({"model": "sit_x"}, "unknown model 'sit_x'"),
        ({"stages": (9, 3)}, "do not fit sit_s"),
        ({"keeping_ratio": 0.0}, "keeping ratio must be above 0"),
    ],
)
def test_what_is_refused_at_once(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


# ------------------------------------------------------------------------------------------------------- the same run


@pytest.fixture
def request_with_files(tmp_path: Path) -> TrainRequest:
    for name in ("teacher", "init", "cnn"):
        (tmp_path / name).write_bytes(name.encode())
    return replace(
        BASE, teacher=tmp_path / "teacher", init=tmp_path / "init", cnn_teacher="resnet50", cnn_checkpoint=tmp_path / "cnn"
    )  # fmt: skip


def test_identity_is_plain_json(request_with_files: TrainRequest) -> None:
    identity = request_with_files.identity(512)
    assert json.loads(json.dumps(identity)) == identity
    asked = replace(request_with_files, stages=(10, 2, 2, 2))
    assert json.loads(json.dumps(asked.identity(512))) == asked.identity(512) != identity


# what a run computes, and what it does not depend on; what goes with --qat does not matter without
SAME = {
    "pretrained": True,  # which becomes an init
    "qat_images": 5, "qat_skip": ("head",),
    "output": Path("elsewhere"), "data_dir": Path("d"), "accumulate": 4, "device": "cuda", "channels_last": True,
    "grad_checkpointing": True,    "compile": True, "workers": 3, "max_damaged": 5, "save_every": 7, "log_every": 7, "tensorboard": True, "resume": True,
}  # fmt: skip
OTHER = {
    "warm_start": False,
    "qat": True, "model": "sit_xs", "data": "flowers/", "stages": (10, 2, 2, 2), "keeping_ratio": 0.4, "train_split": "a",
    "val_split": "b", "image_key": "img", "label_key": "fine", "num_classes": 5, "image_size": 112, "overrides": (("lr", 1e-3),), "seed": 1, "amp": "bf16", "kept": (196, 90, 40, 9),
    "sync_batchnorm": True, "cnn_teacher": "resnet18", "teacher": None, "init": None, "cnn_checkpoint": None,
    "checkpoint_key": "model", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_mode": "squash", "interpolation": "bilinear", "orientation": "stored",
}  # fmt: skip


def test_every_field_is_either(request_with_files: TrainRequest) -> None:
    assert SAME.keys() | OTHER.keys() == {f.name for f in fields(TrainRequest)}
    assert not SAME.keys() & OTHER.keys()


@pytest.mark.parametrize("name", SAME)
def test_where_and_how_fast_it_computes_may_differ(name: str, request_with_files: TrainRequest) -> None:
    other = replace(request_with_files, **{name: SAME[name]})
    assert other != request_with_files
    assert other.identity(512) == request_with_files.identity(512)


@pytest.mark.parametrize("name", OTHER)
def test_what_it_computes_may_not(name: str, request_with_files: TrainRequest) -> None:
    other = replace(request_with_files, **{name: OTHER[name]})
    assert other.identity(512) != request_with_files.identity(512)


def test_a_run_from_before_pictures_were_turned_goes_on_without_turning_them(
    request_with_files: TrainRequest,
) -> None:
    identity = replace(request_with_files, orientation="stored").identity(512)
    before = {k: v for k, v in identity.items() if k not in ("mean", "std", "interpolation", "orientation")}
    assert all(before.get(k) == v for k, v in identity.items())  # as a state is compared
    assert request_with_files.identity(512)["orientation"] == "exif"


def test_a_value_of_the_recipe_that_differs_can_be_named(request_with_files: TrainRequest) -> None:
    other = replace(request_with_files, overrides=(("smoothing", 0.2),)).identity(512)
    same = request_with_files.identity(512)
    assert {k: (same[k], other[k]) for k in same if same[k] != other[k]} == {"smoothing": (0.1, 0.2)}


def test_a_run_from_before_hard_labels_goes_on(request_with_files: TrainRequest) -> None:
    """Its state does not name their weight, and with tokens that weigh nothing has reverse TSMs that are made no more."""
    assert "hard_label_weight" not in request_with_files.identity(512)
    asked = replace(request_with_files, overrides=(("hard_label_weight", 1.0), ("token_weight", 0.0)))
    identity = asked.identity(512)
    assert (identity["hard_label_weight"], identity["reverse_tsm"]) == (1.0, False)
    assert "reverse_tsm" not in request_with_files.identity(512)


@pytest.mark.parametrize(
    ("model", "asked", "checkpoints"),
    [
        ("sit_l", None, True),
        ("sit_lvvit_large", None, True),
        ("sit_l", False, False),
        ("sit_m", None, False),
        ("lvvit_l", None, False),
        ("sit_m", True, True),
    ],
)
def test_sit_l_is_trained_as_published_with_checkpointed_blocks(
    model: str, asked: bool | None, checkpoints: bool
) -> None:
    assert replace(BASE, model=model, grad_checkpointing=asked).checkpoints_gradients == checkpoints


def test_nor_the_images_of_a_step(request_with_files: TrainRequest) -> None:
    assert request_with_files.identity(512) != request_with_files.identity(256)


def test_files_go_by_their_content(request_with_files: TrainRequest, tmp_path: Path) -> None:
    moved = replace(request_with_files, teacher=tmp_path / "moved")
    (tmp_path / "moved").write_bytes(b"teacher")
    assert moved.identity(512) == request_with_files.identity(512)
    (tmp_path / "moved").write_bytes(b"another")
    assert moved.identity(512) != request_with_files.identity(512)


def test_the_recipe_it_had_counts_and_not_how_it_was_asked_for(request_with_files: TrainRequest) -> None:
    default = STUDENTS["sit_s"].lr
    asked = replace(request_with_files, overrides=(("lr", default),))
    assert asked.identity(512) == request_with_files.identity(512)
    assert Recipe().lr == default
