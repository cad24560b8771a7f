"""Arguments that follow a model's name: spelled, read back, and made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, get_config
from sit_deploy.models.config_json import ConfigJson
from sit_deploy.models.timm_arguments import spell, split
from sit_deploy.models.timm_name import timm_architecture

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("arguments", "name"),
    (
        ({}, TINY),
        ({"reg_tokens": 4}, f"{TINY}:reg_tokens=4"),
        ({"init_values": 1e-05, "class_token": False, "global_pool": "avg", "fc_norm": None},
         f"{TINY}:init_values=1e-05,class_token=false,global_pool=avg,fc_norm=null"),
    ),
)  # fmt: skip
def test_a_name_is_read_back(arguments: dict[str, Any], name: str) -> None:
    assert spell(TINY, arguments) == name
    base, found = split(name)
    assert (base, found) == (TINY, arguments)
    assert [type(v) for v in found.values()] == [type(v) for v in arguments.values()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        ({"pretrained": True}, "the argument 'pretrained' is not taken"),
        ({"checkpoint_path": "/etc/passwd"}, "the argument 'checkpoint_path' is not taken"),
        ({"features_only": True}, "the argument 'features_only' is not taken"),
        ({"a b": 1}, "the argument 'a b' is not taken"),
        ({"norm_layer": {"x": 1}}, "only numbers, words, true, false and null are taken"),
        ({"norm_layer": "a,b=c"}, "only numbers, words"),
        ({"norm_layer": "4"}, "only numbers, words"),  # it would be read back as a number
        ({"eps": float("nan")}, "only numbers, words"),
        ({"patch_size": [16, 8]}, "only numbers, words"),
    ),
)
def test_what_is_no_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        spell(TINY, arguments)


@pytest.mark.parametrize(
    ("rest", "words"),
    (
        ("reg_tokens", "'reg_tokens' of vit_tiny_patch16_224 is no argument of a model; write"),
        ("reg_tokens=", "is no argument of a model"),
        ("", "is no argument of a model"),
        ("pretrained=true", "is not taken with a model's name"),
        ("img_size=96", "pass --image-size"),
        ("num_classes=0", "pass --num-classes"),
        ("depth=2\n", "only numbers, words"),
        ("no_such=1", "timm cannot make .*no_such.*; check what follows the colon"),
        ("depth=many", "timm cannot make"),
        ("num_heads=0", "timm cannot make .*num_heads=0.*; check what follows the colon"),
        ("embed_dim=0", "timm cannot make"),
        ("patch_size=0", "timm cannot make"),
        ("depth=100000", "a depth of 100000 is that of no vision transformer; give at most 1000"),
        ("depth=2,depth=3", "the argument depth of vit_tiny_patch16_224 is given twice"),
        ("depth=0", "has no blocks"),
    ),
)
def test_names_that_make_no_model(rest: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        get_config(f"{TINY}:{rest}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("reg_tokens=100000", "would have 100,197 tokens, and at most 20,000 are made"),
        ("patch_size=1", "would have 50,177 tokens"),
        ("embed_dim=99999", "parameters, and at most 20,000,000,000 are made; check what follows the colon"),
        ("mlp_ratio=100000", "parameters, and at most"),
    ],
)
def test_a_model_that_nobody_could_run_is_not_made(rest: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_config(f"{TINY}:{rest}")
    distilled = "deit_tiny_distilled_patch16_224:reg_tokens=2"
    with pytest.raises(
        InputError, match="register tokens, which a distilled DeiT of timm does not read; check what"
    ):
        get_config(distilled)
    assert get_config(f"{TINY}:reg_tokens=16,patch_size=8").base == f"{TINY}:reg_tokens=16,patch_size=8"


@pytest.mark.parametrize("name", [f"{TINY}.", f"{TINY}.:reg_tokens=4", "test_vit."])
def test_a_dot_with_nothing_behind_it(name: str) -> None:
    with pytest.raises(
        InputError, match="has a dot at the end of timm's name, behind which nothing is; leave it out"
    ):
        get_config(name)


def test_a_model_is_made_with_them() -> None:
    name = f"{TINY}:depth=3,embed_dim=48,reg_tokens=2"
    config = get_config(name, stages=(1, 2))
    assert (config.name, config.embed_dim, config.depth) == (name, 48, 3)
    with torch.device("meta"):
        model = create_model(config, img_size=32, num_classes=5)
    assert (model.embed_dim, model.depth, model.num_classes) == (48, 3, 5)
    assert model.reg_token.shape == (1, 2, 48)


def test_those_of_a_config_json_that_change_nothing_are_no_part_of_its_name() -> None:
    def name(**arguments: Any) -> str:
        return timm_architecture(ConfigJson({"architecture": TINY, "model_args": arguments}), "me/x")

    assert name(img_size=64, num_classes=3, class_token=True, global_pool="token", in_chans=3) == TINY
    assert name(img_size=64, reg_tokens=4) == f"{TINY}:reg_tokens=4"
    with pytest.raises(InputError, match="takes images of 1 channels"):
        name(in_chans=1)
    with pytest.raises(
        InputError, match=r"me/x is a vit_tiny_patch16_224 made otherwise: the argument act_layer"
    ):
        name(act_layer=["relu"])
