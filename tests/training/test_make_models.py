"""The models of a run: where their weights come from, and teachers that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from sit_deploy.data.datasets import ArrayImages, Data
from sit_deploy.errors import InputError
from sit_deploy.models import ModelCard, create_model, get_config, save_weights
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import named_model, randomise, smaller_vits, tiny_model
from training.make_models import Models, _check_teacher, make_models
from training.recipes import Recipe
from training.request import TrainRequest
from training.task import FRDTask

pytestmark = pytest.mark.usefixtures("small_nano", "small_vits")

SIZE = 48  # 9 patches, of which sit_nano keeps 9, 4, 2 and 1
CLASSES = ["cat", "dog", "hen"]
NO_IMAGES = ArrayImages(np.zeros((0, 8, 8), np.uint8), np.zeros(0, int))
DATA = Data("pets", NO_IMAGES, NO_IMAGES, CLASSES, 3)
RECIPE = Recipe(drop_path=0.1)
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def small_vits() -> Iterator[None]:
    with smaller_vits():
        yield


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A function that writes a randomised model of a name as training leaves it, or as a plain checkpoint (card=False)."""

    def save(
        name: str = "lvvit_nano",
        num_classes: int = 3,
        card: bool = True,
        size: int = SIZE,
        classes: Any = None,
        **options: Any,
    ) -> Path:
        config = get_config(name)
        model = named_model(name, seed=4, img_size=size, num_classes=num_classes, **options)
        path = (
            tmp_path
            / f"{name}-{num_classes}-{len(list(tmp_path.iterdir()))}.{'safetensors' if card else 'pth'}"
        )
        if not card:
            torch.save({"model": model.state_dict()}, path)
            return path
        blocks = options.get("stage_blocks", config.stage_blocks)
        ratio = None if "kept" in options else config.keeping_ratio
        fields = ModelCard(
            name, blocks, ratio, tuple(model.kept), size, num_classes, Preprocessing.for_model(size),
            classes=classes,
        )  # fmt: skip
        unused = ("aux_head.", "rtsm.")
        save_weights(path, {k: v for k, v in model.state_dict().items() if not k.startswith(unused)}, fields)
        return path

    return save


def make(model: str = "sit_nano", data: Data = DATA, recipe: Recipe = RECIPE, **options: Any) -> Models:
    request = TrainRequest(model, "pets/", Path("out"), **{"image_size": SIZE, **options})
    return make_models(request, recipe, data)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        make(*args, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def state_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)["model"]


def trained_step(models: Models) -> None:
    task = FRDTask(models.model, models.teacher, torch.device("cpu"))
    images, targets = torch.randn(2, 3, SIZE, SIZE), torch.eye(3)[:2]
    loss = task(images, targets)["loss"]
    loss.backward()
    assert loss.isfinite()


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


# --------------------------------------------------------------------------------------------------- the extra teacher


def save_cnn(folder: Path, name: str = "test_resnet", num_classes: int = 3) -> Path:
    torch.manual_seed(3)
    torch.save(timm.create_model(name, num_classes=num_classes).state_dict(), folder / "cnn.pth")
    return folder / "cnn.pth"


@pytest.mark.parametrize(
    ("name", "base", "stages"),
    [("sit_nano", "lvvit_nano", None), ("deit_tiny_patch16_224", "deit_tiny_patch16_224", (3, 3))],
)
def test_rounding_is_learnt_with_the_dist_token_that_is_deployed(
    name: str, base: str, stages: tuple[int, ...] | None, save: Save
) -> None:
    """Its CNN need not be there any more; without --qat it is left out, and said."""
    student = save(name, dist_token=True, card=False, **({"stage_blocks": stages} if stages else {}))
    state = state_of(student)
    for teacher in (None, save(base)):
        models = make(name, init=student, teacher=teacher, stages=stages, qat=True)
        assert models.model.has_dist_token and models.cnn is None
        kept = models.model.state_dict()
        assert all(torch.equal(kept[name], value) for name, value in state.items())
    assert models.start == str(student)
    trained_step(models)
    plain = make(name, init=student, stages=stages)
    assert not plain.model.has_dist_token and "left out what the model has not: its dist token" in plain.start


def test_the_extra_teacher_and_its_normalisation(save: Save, tmp_path: Path) -> None:
    path = save_cnn(tmp_path)
    models = make(teacher=save(), cnn_teacher="test_resnet", cnn_checkpoint=path)
    assert models.model.has_dist_token and not models.cnn.training
    state = models.cnn.state_dict()
    assert all(torch.equal(state[k], v) for k, v in torch.load(path, weights_only=True).items())
    pixels = torch.rand(2, 3, SIZE, SIZE)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    gain, offset = models.cnn_normalisation
    # timm's test_resnet takes (x - 0.5) / 0.5
    torch.testing.assert_close((pixels - mean) / std * gain + offset, (pixels - 0.5) / 0.5)
    task = FRDTask(
        models.model, models.teacher, torch.device("cpu"), cnn_teacher=models.cnn, cnn_normalisation=(gain, offset)
    )  # fmt: skip
    result = task((pixels - mean) / std, torch.eye(3)[:2])
    with torch.no_grad():
        wanted = models.cnn((pixels - 0.5) / 0.5).argmax(1)
    result["loss"].backward()
    assert result["hard"] > 0 and wanted.shape == (2,)


def test_extra_teachers_that_do_not_fit(save: Save, tmp_path: Path) -> None:
    teacher, cnn = save(), save_cnn(tmp_path, num_classes=4)
    assert "unknown CNN teacher 'resnet_x'" in refusal(
        teacher=teacher, cnn_teacher="resnet_x", cnn_checkpoint=cnn
    )
    message = refusal(teacher=teacher, cnn_teacher="test_resnet", cnn_checkpoint=cnn)
    assert f"checkpoint {cnn} does not fit test_resnet with 3 classes" in message
    name = "vit_base_patch16_gap_224"
    path = save(name)
    message = refusal(
        name, stages=(4, 2), teacher=path, cnn_teacher="test_resnet", cnn_checkpoint=save_cnn(tmp_path)
    )
    assert "reads the class token, such as deit_small_patch16_224" in message


@pytest.mark.parametrize("base", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_extra_teacher_of_a_deit(base: str, save: Save, tmp_path: Path) -> None:
    """The student starts from a plain teacher or a distilled one, and is named as the plain one."""
    path = save(base, card=False)
    models = make(
        "deit_tiny_patch16_224", stages=(3, 3), teacher=path, cnn_teacher="test_resnet", cnn_checkpoint=save_cnn(tmp_path)
    )  # fmt: skip
    assert models.model.has_dist_token and models.teacher.has_dist_token == ("distilled" in base)
    state, given = models.model.state_dict(), state_of(path)
    assert torch.equal(state["cls_token"], given["cls_token"])
    assert torch.equal(state["pos_embed"][:, -9:], given["pos_embed"][:, -9:])
    if "distilled" in base:
        assert all(torch.equal(state[k], v) for k, v in given.items())
    task = FRDTask(
        models.model, models.teacher, torch.device("cpu"), cnn_teacher=models.cnn, cnn_normalisation=models.cnn_normalisation
    )  # fmt: skip
    task(torch.randn(2, 3, SIZE, SIZE), torch.eye(3)[:2])["loss"].backward()
    assert models.model.dist_token.grad.any() and models.model.head_dist.weight.grad.any()


def test_a_distilled_deit_teaches_a_plain_one(save: Save) -> None:
    path = save("deit_tiny_distilled_patch16_224", card=False)
    models = make("deit_tiny_patch16_224", stages=(3, 3), teacher=path)
    assert models.teacher.has_dist_token and not models.model.has_dist_token
    given = state_of(path)["pos_embed"]
    assert torch.equal(models.model.pos_embed, torch.cat((given[:, :1], given[:, 2:]), dim=1))
    trained_step(models)


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


# ---------------------------------------------------------------------------------- files of other trainers than ours


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def test_what_is_too_much_is_left_out_and_said(tmp_path: Path) -> None:
    state = randomise(create_model("lvvit_nano", img_size=SIZE, num_classes=3)).state_dict()
    extra = {"fc_norm.weight": torch.ones(64), "pre_logits.fc.bias": torch.ones(3)}
    torch.save({**state, **extra, "criterion.weight": torch.ones(3)}, tmp_path / "init.pth")
    start = make("lvvit_nano", init=tmp_path / "init.pth").start
    assert "left out 1 entry that is no part of the model: criterion.weight" in start
    assert "left out what the model has not: fc_norm.weight, pre_logits.fc.bias" in start
    torch.save({**state, "blocks.4.norm1.weight": torch.ones(64)}, tmp_path / "deeper.pth")
    assert "blocks.4.norm1.weight" in refusal("lvvit_nano", init=tmp_path / "deeper.pth")


def test_the_user_says_which_of_several(tmp_path: Path) -> None:
    teacher = randomise(create_model("lvvit_nano", img_size=SIZE, num_classes=3)).state_dict()
    torch.save({"best": teacher, "last": other(teacher)}, tmp_path / "two.pth")
    torch.save({"state_dict": {f"net.{k}": v for k, v in teacher.items()}}, tmp_path / "one.ckpt")
    asked = "under each of 'best', 'last'; say which with --checkpoint-key"
    assert asked in refusal("sit_nano", teacher=tmp_path / "two.pth")
    assert asked in refusal("sit_nano", teacher=tmp_path / "one.ckpt", init=tmp_path / "two.pth")
    assert "no weights under 'first'" in refusal(
        "lvvit_nano", init=tmp_path / "two.pth", checkpoint_key="first"
    )
    made = make("sit_nano", teacher=tmp_path / "two.pth", checkpoint_key="last")
    assert made.teacher is not None
    assert torch.equal(made.teacher.state_dict()["norm.weight"], other(teacher)["norm.weight"])
    made = make("sit_nano", teacher=tmp_path / "one.ckpt", init=tmp_path / "two.pth", checkpoint_key="last")
    assert torch.equal(made.model.state_dict()["norm.weight"], other(teacher)["norm.weight"])


def test_a_teacher_of_one_output(tmp_path: Path) -> None:
    """Of two classes it is the teacher that it was, and of three it is none."""
    model = randomise(create_model("lvvit_nano", img_size=SIZE, num_classes=1)).eval()
    torch.save(model.state_dict(), tmp_path / "binary.pth")
    assert "has one output" in refusal("sit_nano", teacher=tmp_path / "binary.pth")
    two = replace(DATA, classes=CLASSES[:2], num_classes=2)
    made = make("sit_nano", two, teacher=tmp_path / "binary.pth")
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(made.teacher(x)[:, 1:], model(x))
        assert not made.teacher(x)[:, 0].any()


# ------------------------------------------------------------------------------------------ size and preprocessing


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
