"""What a run starts from where other trainers wrote it: what is too much, which of several, and one output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sit_deploy.models import create_model
from tests.helpers.made_models import CLASSES, DATA, SIZE, make, refusal
from tests.helpers.models import randomise

pytestmark = pytest.mark.usefixtures("small_nano", "small_vits")


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
