"""One set of weights under many schedules: the same logits as of a model that is made with each."""

import pytest
import timm
import torch

from sit_deploy.errors import InputError
from sit_deploy.models.reduced import reduced_by
from sit_deploy.models.registry import create_model
from sit_deploy.models.slim import slim

SCHEDULES = [((2, 2, 4), (49, 24, 12)), ((1, 7), (49, 31)), ((3, 1, 1, 3), (49, 48, 5, 2))]


@pytest.mark.parametrize("method", ["transform", "merge"])
def test_it_is_what_create_model_makes(method):
    torch.manual_seed(0)
    teacher = create_model("lvvit_nano", num_classes=10).eval()
    images = torch.randn(2, 3, 112, 112)
    before = teacher(images)
    make = reduced_by(teacher, method)
    for stages, kept in SCHEDULES:
        made = create_model(
            "lvvit_nano", num_classes=10, stage_blocks=stages, kept=kept, method=method
        ).eval()
        made.load_state_dict(teacher.state_dict())
        assert torch.equal(make(stages, kept)(images), made(images))
        assert not torch.equal(made(images), before)
    # the model itself is as it was
    assert torch.equal(teacher(images), before) and not hasattr(teacher, "reduction")
    assert torch.equal(make((8,), (49,))(images), before)


def test_a_model_of_timm_is_slimmed_so_too():
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    teacher = slim(plain, (3,)).eval()
    made = slim(plain, (1, 2), kept=(16, 7), method="transform").eval()
    assert torch.equal(reduced_by(teacher, "transform")((1, 2), (16, 7))(images), made(images))


def test_weights_are_shared():
    teacher = create_model("lvvit_nano", num_classes=10)
    made = reduced_by(teacher, "merge")((4, 4), (49, 24))
    assert made.blocks[0].attn.qkv.weight is teacher.blocks[0].attn.qkv.weight


@pytest.mark.parametrize(
    ("stages", "kept", "words"),
    [
        ((4, 3), (49, 24), "add up"),
        ((4, 4), (49, 50), "grows"),
        ((4, 4), (49,), "does not fit"),
        ((4, 4), (48, 24), "does not fit"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(stages, kept, words):
    make = reduced_by(create_model("lvvit_nano", num_classes=10), "merge")
    with pytest.raises(InputError, match=words):
        make(stages, kept)


def test_a_model_that_slims_is_refused():
    with pytest.raises(InputError, match="take its teacher"):
        reduced_by(create_model("sit_nano", num_classes=10), "merge")


def test_a_model_that_is_taken_whole_is_refused():
    with pytest.raises(InputError, match="only the unslimmed model"):
        reduced_by(torch.nn.Linear(2, 2), "merge")
