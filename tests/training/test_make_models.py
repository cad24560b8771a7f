"""The models of a run: where their weights come from, and teachers that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import get_config
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.made_models import DATA, RECIPE, SIZE, Save, make, refusal, state_of, trained_step
from tests.helpers.models import tiny_model
from training.make_models import _check_teacher
from training.request import TrainRequest

pytestmark = pytest.mark.usefixtures("small_nano", "small_vits")


# ------------------------------------------------------------------------------------------------------------ starts


@pytest.mark.parametrize("card", [True, False])
def test_a_student_starts_from_its_teacher_bit_by_bit(card: bool, save: Save) -> None:
    path = save(card=card)
    models = make(teacher=path)
    student, given = models.model.state_dict(), state_of(path)
    assert {
        "head.weight",
        "blocks.3.mlp.fc2.bias",
        "patch_embed.bn4.running_var",
        "pos_embed",
    } <= given.keys()
    for name, value in given.items():
        assert torch.equal(student[name], value), name
    new = {name.split(".")[0] for name in student.keys() - given.keys()}
    assert new == ({"tsm", "rtsm", "aux_head"} if card else {"tsm", "rtsm"})
    assert models.config.name == "sit_nano" and models.teacher_config.name == "lvvit_nano"
    assert models.start == f"the teacher's weights, {path}"
    teacher = models.teacher.state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in given.items())
    assert models.teacher.slim_after == {} and models.model.kept == (9, 4, 2, 1)
    assert models.cnn is None
    trained_step(models)


def test_what_is_new_follows_from_the_seed(save: Save) -> None:
    path = save()
    tsm = [make(teacher=path, seed=seed).model.tsm[0].weight[1].weight for seed in (0, 0, 1)]
    assert torch.equal(tsm[0], tsm[1]) and not torch.equal(tsm[0], tsm[2])
    assert tsm[0].std() > 0.01


def test_a_student_without_a_token_loss_has_no_reverse_tsms(save: Save) -> None:
    models = make(teacher=save(), recipe=replace(RECIPE, token_weight=0.0))
    assert models.teacher is not None and models.model.slim_after and not hasattr(models.model, "rtsm")


def test_a_start_from_scratch_follows_from_the_seed() -> None:
    weights = [make("lvvit_nano", seed=seed).model.blocks[0].attn.qkv.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    models = make("lvvit_nano")
    assert models.start == "scratch" and models.teacher is None and not hasattr(models.model, "rtsm")
    assert models.model.num_classes == 3


def test_the_recipe_s_drop_path_is_the_student_s_alone(save: Save) -> None:
    models = make(teacher=save(), recipe=replace(RECIPE, drop_path=0.3))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in models.model.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(4)])
    assert all(isinstance(block.drop_path, nn.Identity) for block in models.teacher.blocks)


def test_preprocessing_is_the_model_s_unless_the_recipe_says_how_much_to_look_at() -> None:
    assert make("lvvit_nano").preprocessing == Preprocessing.for_model(SIZE, 0.875, orientation="exif")
    whole = make("lvvit_nano", recipe=replace(RECIPE, crop_pct=1.0)).preprocessing
    assert whole == Preprocessing.for_model(SIZE, 1.0, orientation="exif")
    assert make("lvvit_nano", image_size=None).preprocessing.size == (48, 48)


def test_pictures_are_cropped_whatever_goes_with_the_name_unless_it_is_asked_for() -> None:
    """So a run that was begun goes on with the pictures that it had; timm's configuration of this name squeezes them."""
    name = "vit_medium_patch16_gap_384:depth=2,embed_dim=32,num_heads=2"
    models = make(name, recipe=replace(RECIPE, crop_pct=1.0))
    assert (models.preprocessing.crop_mode, models.choice.sources["crop_mode"]) == (
        "center", "the default of sit-deploy train"
    )  # fmt: skip
    asked = make(name, recipe=replace(RECIPE, crop_pct=1.0), crop_mode="squash")
    assert asked.preprocessing == replace(models.preprocessing, crop_mode="squash")
    assert not [note for note in asked.choice.notes if "crop-mode" in note]


def test_another_head_leaves_all_else(save: Save) -> None:
    path = save(num_classes=5)
    models = make("lvvit_nano", init=path)
    state = models.model.state_dict()
    for name, value in state_of(path).items():
        if name.startswith("head."):
            assert state[name].shape[0] == 3
        else:
            assert torch.equal(state[name], value), name
    assert models.start == f"{path}, with a new head"
    assert models.model.head.weight.std() > 0.01 and not models.model.head.bias.any()


def test_the_same_classes_keep_their_head(save: Save) -> None:
    path = save()
    models = make("lvvit_nano", init=path)
    assert torch.equal(models.model.head.weight, state_of(path)["head.weight"])
    assert models.start == str(path)


def test_a_student_may_start_from_another_student(save: Save) -> None:
    """And be distilled from its teacher on."""
    path, teacher = save("sit_nano", card=False, reverse_tsm=True), save()
    models = make(teacher=teacher, init=path)
    state = models.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in state_of(path).items())
    assert models.start == str(path)
    assert torch.equal(models.teacher.head.weight, state_of(teacher)["head.weight"])


def test_positions_of_another_size_are_resampled_as_timm_does(save: Save) -> None:
    from timm.layers import resample_abs_pos_embed

    path = save(size=64)
    models = make(teacher=path)
    expected = resample_abs_pos_embed(state_of(path)["pos_embed"], [3, 3], [4, 4], num_prefix_tokens=1)
    assert torch.equal(models.model.pos_embed, expected) and torch.equal(models.teacher.pos_embed, expected)


@pytest.mark.parametrize("name", ["lvvit_nano", "deit_tiny_patch16_224"])
def test_a_plain_model_is_slimmed_by_its_stages(name: str, save: Save) -> None:
    """Of ours and of timm's; without a card, by the model's own name."""
    depth = get_config(name).depth
    path = save(name, card=False)
    models = make(name, stages=(depth - 3, 1, 1, 1), keeping_ratio=0.6, teacher=path)
    assert models.model.kept == (9, 5, 3, 1)
    state = models.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in state_of(path).items())
    assert models.teacher_config.name == name and models.teacher.kept == (9,)
    trained_step(models)


def test_tokens_of_any_counts(save: Save) -> None:
    models = make("lvvit_nano", stages=(1, 1, 2), kept=(9, 7, 2), teacher=save())
    assert models.model.kept == models.config.kept == (9, 7, 2)
    trained_step(models)
    assert make("sit_nano", kept=(9, 4, 2, 1)).config.kept is None  # what the ratio gives
    message = refusal("sit_nano", kept=(49, 30, 18, 9))
    assert message.endswith(
        "begin with 49, and images of 48 pixels have 9 patches of 16; begin with 9, or take images of 112"
    )


def test_weights_of_other_token_counts(save: Save) -> None:
    """Their TSMs' last layers are new, and said; quantization-aware training has no use for that."""
    path = save("sit_nano", kept=(9, 7, 3, 2))
    assert (
        "left out what the model has not: the last layers of its TSMs, which give other"
        in make(init=path).start
    )
    assert "left out" not in make(init=path, kept=(9, 7, 3, 2)).start
    message = refusal(init=path, qat=True)
    assert message.endswith("; pass what it slims with: --stages 1,1,1,1 --kept 9,7,3,2")
    assert make(init=path, qat=True, kept=(9, 7, 3, 2)).model.kept == (9, 7, 3, 2)


def test_a_vision_transformer_of_timm_as_timm_saves_it(save: Save, tmp_path: Path) -> None:
    """With its 1000 classes, first a teacher for three, then that one's student."""
    plain = timm.create_model("deit_tiny_patch16_224")
    torch.save(plain.state_dict(), tmp_path / "deit.pth")
    models = make("deit_tiny_patch16_224", init=tmp_path / "deit.pth", image_size=32)
    state = models.model.state_dict()
    assert state["pos_embed"].shape == (1, 5, 96)
    for name, value in plain.state_dict().items():
        if not name.startswith(("head.", "pos_embed")):
            assert torch.equal(state[name], value), name
    assert models.preprocessing.resize == int(32 / 0.9)  # DeiT's own share, not ours


def test_weights_of_another_model_by_the_file_beside_them(tmp_path: Path) -> None:
    """Other heads do not show in weights: training may make another model of them, which is said."""
    torch.save(timm.create_model("deit_tiny_patch16_224").state_dict(), tmp_path / "deit.pth")
    for heads, said in ((6, True), (3, False)):
        fields = {"architecture": "deit_tiny_patch16_224", "model_args": {"num_heads": heads}}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        start = make("deit_tiny_patch16_224", init=tmp_path / "deit.pth", image_size=32).start
        assert ("another model than its weights were of" in start and "num_heads=6" in start) == said


# ---------------------------------------------------------------------------------------------- what does not fit


def test_a_checkpoint_of_another_model(save: Save, tmp_path: Path) -> None:
    path = save("deit_tiny_patch16_224", card=False)
    message = refusal("lvvit_nano", init=path)
    assert f"checkpoint {path} does not fit lvvit_nano" in message and "width and depth" in message
    (tmp_path / "no.pth").write_bytes(b"nothing")
    assert str(tmp_path / "no.pth") in refusal("lvvit_nano", init=tmp_path / "no.pth")
    assert "nowhere.pth" in refusal("lvvit_nano", init=tmp_path / "nowhere.pth")


def test_weights_that_lack_are_counted_once(save: Save, tmp_path: Path) -> None:
    state = state_of(save(card=False))
    state["norm.weight"] = torch.ones(5)  # of another shape
    del state["norm.bias"]
    torch.save(state, tmp_path / "bad.pth")
    message = refusal("lvvit_nano", init=tmp_path / "bad.pth")
    assert "2 weights are missing, without a place or of another shape (norm.weight, norm.bias)" in message


def test_a_teacher_of_another_width_and_depth(save: Save) -> None:
    path = save("deit_tiny_patch16_224")
    message = refusal(teacher=path)
    assert f"teacher {path} does not fit sit_nano" in message
    assert "width 96, not 64; depth 6, not 4" in message and "lvvit_nano" in message


def test_a_teacher_of_other_tokens() -> None:
    """Patches of another size: 16 tokens at 64 pixels against 4."""
    request = TrainRequest("sit_nano", "pets/", Path("out"), teacher=Path("t.pth"))
    config = get_config("sit_nano")
    small, large = tiny_model(stage_blocks=(6,), img_size=32), tiny_model()
    with pytest.raises(InputError, match="it has patch tokens 4, not 16; give a checkpoint of lvvit_nano"):
        _check_teacher(small, large, request, config, DATA)


def test_a_teacher_of_other_classes(save: Save) -> None:
    path = save(num_classes=5)
    message = refusal(teacher=path)
    assert f"teacher {path} has 5 classes and pets has 3" in message
    assert f"sit-deploy train --model lvvit_nano --init {path} --data pets/" in message
    path = save(classes=("cat", "hen", "dog"))
    assert "its class 1 is 'hen', here it is 'dog'" in refusal(teacher=path)
    make(teacher=save(classes=("cat", "dog", "hen")))


@pytest.mark.parametrize("card", [True, False])
def test_a_teacher_that_is_slimmed_itself(card: bool, save: Save) -> None:
    path = save("sit_nano", card=card)
    message = refusal(teacher=path)
    assert str(path) in message and "lvvit_nano" in message
    assert not card or "is slimmed itself" in message


def test_a_model_that_slims_nothing_needs_no_teacher(save: Save) -> None:
    message = refusal("lvvit_nano", teacher=save())
    assert "lvvit_nano slims nothing" in message and "--stages" in message


def test_a_teacher_with_a_dist_token_teaches_a_student_without(save: Save) -> None:
    """It has weights that the student has no use for; its class token's logits and its patch tokens are what counts."""
    path = save(dist_token=True, card=False)
    models = make(teacher=path)
    state = models.model.state_dict()
    left_out = {name for name in state_of(path) if name not in state}
    assert left_out == {"dist_token", "dist_pos_embed", "head_dist.weight", "head_dist.bias"}
    assert all(torch.equal(state[k], v) for k, v in state_of(path).items() if k not in left_out)
    trained_step(models)


def test_a_teacher_with_parts_that_the_student_has_not(save: Save) -> None:
    """LayerScale and positions of another shape, at the same width, depth and tokens."""
    path = save("deit3_small_patch16_224")
    message = refusal("deit_small_patch16_224", stages=(4, 2), teacher=path)
    assert "deit_small_patch16_224" in message and str(path) in message and "ls1.gamma" in message
