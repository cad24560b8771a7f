"""What is said of intact checkpoints of models that differ: how they differ, and no cause that is not certain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.utils.prune
from timm.models.vision_transformer import VisionTransformer

from sit_deploy.errors import InputError
from sit_deploy.models import load_model
from tests.helpers.models import shapes_alone

Save = Callable[..., Path]
NAME, TINY = (
    "vit_tiny_patch16_224",
    {"img_size": 64, "embed_dim": 192, "num_heads": 3, "depth": 12, "num_classes": 5},
)

DIFFERING: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one channel": ({"in_chans": 1}, ("its images have 1 channels, not 3",)),
    "no head": ({"num_classes": 0}, ("2 missing (head.weight, head.bias)", "train one: sit-deploy train")),
    "fc_norm": ({"fc_norm": True}, ("a norm after its pooling (fc_norm)", "fc_norm.weight")),
    "registers": ({"reg_tokens": 4}, ("register tokens", "reg_token", f"pass --model {NAME}:reg_tokens=4")),
    "registers without positions": ({"reg_tokens": 4, "no_embed_class": True}, ("register tokens", "of exactly this")),
    "q/k norms": ({"qk_norm": True}, ("normalised queries and keys",)),
    "norm first": ({"pre_norm": True}, ("a norm before its blocks",)),
    "layer scale": ({"init_values": 1e-5}, ("layer scale",)),
    "not square": ({"img_size": (32, 96)}, ("its 13 positions are not those of a square image",)),
    "no class token": ({"class_token": False, "global_pool": "avg"}, ("(cls_token, ",)),
    "width": ({"embed_dim": 96}, ("its width is 96, not 192", "pass the --model")),
    "depth": ({"depth": 11}, ("its depth is 11, not 12",)),
    "patches": ({"patch_size": 8}, ("its patches are of 8 pixels, not 16",)),
    "no bias": ({"qkv_bias": False}, ("12 missing (blocks.0.attn.qkv.bias",)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIFFERING)
def test_intact_files_are_told_by_how_they_differ(kind: str, save: Save) -> None:
    options, words = DIFFERING[kind]
    with shapes_alone():
        made = VisionTransformer(**{**TINY, **options}).state_dict()
    path = save({k: torch.zeros(()).expand(v.shape) for k, v in made.items()})
    with pytest.raises(InputError) as caught:
        load_model(NAME, path, 64)
    message = str(caught.value)
    assert all(word in message for word in words), message
    for claim in ("altered", "saved in part", "another architecture", "corrupt"):
        assert claim not in message


UNFINISHED: dict[str, tuple[Callable[[torch.nn.Module], Any], str]] = {
    "pruned": (lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5), "prune.remove"),
    "parametrised": (
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
        "remove_parametrizations",
    ),
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_weights_that_are_not_yet_plain(kind: str, save: Save) -> None:
    change, remedy = UNFINISHED[kind]
    model = timm.create_model(NAME, img_size=64, num_classes=5, depth=12)
    change(model.blocks[3].mlp.fc1)
    with pytest.raises(InputError, match=remedy):
        load_model(NAME, save(model.state_dict()), 64)


@pytest.mark.parametrize(
    ("saved", "built", "remedy"),
    [
        (
            {"global_pool": "avg"},
            "",
            "if its head reads the mean of its patches, pass --model NAME:global_pool=avg",
        ),
        (
            {},
            ":global_pool=avg",
            "patches that have their norm, pass --model NAME:global_pool=avg,fc_norm=false",
        ),
        (
            {"head": 1},
            "",
            r"nn.Sequential.*make it the head before saving, such as model.head = model.head\[-1\]",
        ),
    ],
)
def test_another_place_of_the_last_norm_has_an_argument(
    saved: dict, built: str, remedy: str, save: Save
) -> None:
    """MAE as fine-tuned, and what `reset_classifier` makes of a model."""
    head = saved.pop("head", None)
    model = timm.create_model(NAME, img_size=64, num_classes=5, depth=1, **saved)
    if head:
        model.head = torch.nn.Sequential(torch.nn.Dropout(), model.head)
    name = f"{NAME}:depth=1{built.replace(':', ',')}"
    with pytest.raises(InputError, match=remedy.replace("NAME:", f"{NAME}:depth=1,")):
        load_model(name, save(model.state_dict()), 64)


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (("head.weight", "head.weight_v"), "parametrised weights.*make them plain"),
        (
            ("mlp.fc1.weight", "mlp.fc1.kernel"),
            "weights as Flax and TensorFlow keep them.*give the model's PyTorch weights",
        ),
        (("mlp.fc1.weight", "mlp.fc1.weight._data"), "quantized weights.*save the float model"),
    ],
)
def test_weights_under_the_names_of_how_they_are_kept(
    renamed: tuple[str, str], said: str, save: Save
) -> None:
    state = timm.create_model(NAME, img_size=64, num_classes=5, depth=1).state_dict()
    with pytest.raises(InputError, match=said):
        load_model(f"{NAME}:depth=1", save({k.replace(*renamed): v for k, v in state.items()}), 64)


def test_adapters_that_are_not_merged(save: Save) -> None:
    state = timm.create_model(NAME, img_size=64, num_classes=5).state_dict()
    state["blocks.0.attn.qkv.lora_A.default.weight"] = torch.zeros(8, 192)
    state["blocks.0.attn.qkv.base_layer.weight"] = state.pop("blocks.0.attn.qkv.weight")
    with pytest.raises(InputError, match=r"LoRA adapters .*; merge them before saving"):
        load_model(NAME, save({f"base_model.model.{k}": v for k, v in state.items()}), 64)
