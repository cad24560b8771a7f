"""Vision transformers that are not slimmed, and stages and schedules that do not fit: each is refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import get_config
from sit_deploy.models.slim import slim
from tests.helpers.models import (
    VIT,
    plain_vit,
    shapes_alone,
    tiny_vit,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", r"another architecture \(resnet\.ResNet\)"),
        ("swin_tiny_patch4_window7_224", "another architecture"),
        ("vit_tiny_r_s16_p8_224", "a HybridEmbed patch embedding"),
        ("vit_base_patch16_224.nowhere", r"cannot make .*Invalid pretrained tag \(nowhere\)"),
    ],
)
def test_models_of_timm_that_are_refused_by_name(name: str, message: str) -> None:
    with shapes_alone(), pytest.raises(InputError, match=message) as caught:
        get_config(name, (6, 2, 2, 2))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_img_pad": True}, "images of any size"),
        ({"patch_drop_rate": 0.1}, "patch dropout"),
        ({"pos_embed": "none"}, "no position embedding"),
        (
            {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
            "LayerNorm in place of a LayerNorm with weights",
        ),
        ({"embed_norm_layer": "batchnorm2d"}, "BatchNorm2d in place of a LayerNorm"),
        ({"patch_size": (16, 8)}, "patches of 16x8 pixels"),
        ({"img_size": 72}, "divisible by 16, got 72x72; take 64 or 80"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_parts_that_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        slim(VisionTransformer(**{**VIT, **options}), (2, 1, 1, 2))
    assert "\n" not in str(caught.value)


def test_overlapping_patches_and_other_heads_are_refused() -> None:
    model = plain_vit()
    model.patch_embed.proj.stride = (8, 8)
    with pytest.raises(InputError, match="overlapping patches"):
        slim(model, (6,))
    model = plain_vit()
    model.head = nn.Sequential(nn.Linear(32, 7), nn.Tanh())
    with pytest.raises(InputError, match="a Sequential head"):
        slim(model, (6,))
    with pytest.raises(InputError, match=r"another architecture .*SlimViT"):
        slim(tiny_vit(), (6,))


def test_stages_schedules_and_images_that_do_not_fit() -> None:
    plain = plain_vit()
    with pytest.raises(InputError, match=r"stages \(2, 2\) add up to 4 blocks, and the model has 6"):
        slim(plain, (2, 2))
    with pytest.raises(InputError, match=r"token schedule \(16, 1, 0, 0\) does not fit"):
        slim(plain, (2, 1, 1, 2), 0.1)
    with pytest.raises(InputError, match="grows"):
        slim(plain, (2, 1, 1, 2), kept=(16, 4, 8, 2))
    model = tiny_vit()
    with pytest.raises(InputError, match=r"\(64, 64\), got \(64, 48\)"):
        model(torch.zeros(1, 3, 64, 48))


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"fc_norm": True}])
def test_a_dist_token_beside_what_is_no_class_token_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="reads the class token, such as deit_small_patch16_224"):
        slim(plain_vit(**options), (6,), dist_token=True)


@pytest.mark.parametrize("options", [{"reg_tokens": 2, "no_embed_class": True}, {"fc_norm": True}])
def test_parts_that_a_distilled_deit_of_timm_does_not_read_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="which a distilled DeiT of timm does not read"):
        slim(plain_vit(distilled=True, **options), (6,))
