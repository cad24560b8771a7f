"""The models of a run with a dist token: its extra teacher, and what is left of it to learn to round."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from tests.helpers.made_models import SIZE, Save, make, refusal, state_of, trained_step
from training.task import FRDTask

pytestmark = pytest.mark.usefixtures("small_nano", "small_vits")


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
