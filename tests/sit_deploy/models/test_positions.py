"""Positions of checkpoints at another size than they were trained at: what timm makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models.beit import checkpoint_filter_fn

from sit_deploy.errors import InputError
from sit_deploy.models.load import load_model
from sit_deploy.models.positions import grid_side, square_side
from sit_deploy.models.state_dict import filter_state_dict
from sit_deploy.models.whole import WholeModel, pass_whole
from tests.helpers.models import WHOLE, randomise, tiny_eva, whole_model

Save = Callable[..., Path]
SIZE = 96
# small ones of every architecture that is taken whole, by timm's names
SMALL = "depth=1,embed_dim=32,num_heads=2"
NAMES = (
    f"beit_base_patch16_224:{SMALL}",
    f"cait_xxs24_224:{SMALL}",
    f"naflexvit_base_patch16_gap:{SMALL}",
    f"naflexvit_base_patch16_parfac_gap:{SMALL}",
    f"naflexvit_base_patch16_radio_v3:{SMALL}",
    f"vit_relpos_medium_patch16_cls_224:{SMALL}",
    f"samvit_base_patch16_224:{SMALL}",
    f"samvit_base_patch16:{SMALL}",
)


def of_another_size(name: str) -> WholeModel:
    """Make a model of WHOLE for images of 96 pixels, not 64."""
    kind, options = type(WHOLE[name]()), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WHOLE[name].__globals__["_SMALL"], "img_size", SIZE)
        made = WHOLE[name](**options)
    assert type(made) is kind
    return pass_whole(made, (SIZE, SIZE), "a part").eval()


@pytest.mark.parametrize("name", ["BEiT", "BEiT, shared positions"])
@torch.no_grad()
def test_relative_biases_are_resampled_as_timm_does_it(name: str) -> None:
    state, larger = whole_model(name).state_dict(), of_another_size(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = filter_state_dict(state, larger)
    expected = checkpoint_filter_fn(dict(state), larger)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)
    assert square_side(state, (1, 0)) == 4
    assert square_side({k: v for k, v in state.items() if k != "pos_embed"}, (1, 0)) == 4


@torch.no_grad()
def test_positions_beside_no_class_token_are_resampled() -> None:
    """CaiT adds its class token behind the blocks, so that no row of the table is of it."""
    state, larger = whole_model("CaiT").state_dict(), of_another_size("CaiT")
    larger.load_state_dict(filter_state_dict(state, larger))
    assert larger.pos_embed.shape == (1, 36, 32)
    assert grid_side(state["pos_embed"], 0) == 4


@torch.no_grad()
def test_sam_reads_its_positions_as_it_would_at_that_size() -> None:
    model, larger = whole_model("SAM"), of_another_size("SAM")
    larger.load_state_dict(filter_state_dict(model.state_dict(), larger))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    model.patch_embed.strict_img_size = False  # timm's own code resamples both tables on the fly
    torch.testing.assert_close(larger(pixels), model(pixels), rtol=1e-4, atol=1e-5)
    assert square_side(model.state_dict(), (1, 0)) == 4


@torch.no_grad()
def test_a_table_of_shared_biases_with_a_class_token() -> None:
    name = "relative positions and class token"
    state, larger = whole_model(name).state_dict(), of_another_size(name)
    larger.load_state_dict(filter_state_dict(state, larger))
    assert square_side(state, (1, 0)) == 4


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_timms_weights_load_by_name_and_give_timms_logits(name: str, save: Save) -> None:
    base, _, arguments = name.partition(":")
    own = {key: int(value) for key, value in (word.split("=") for word in arguments.split(","))}
    plain = randomise(timm.create_model(base, img_size=64, num_classes=5, **own)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    for prefix in ("", "model."):
        loaded = load_model(name, save({prefix + k: v for k, v in plain.state_dict().items()}), 64)
        assert torch.equal(loaded.model(pixels), plain(pixels))
    resampled = load_model(name, save(plain.state_dict()), SIZE)
    told = [note for note in resampled.notes if "resampled" in note]
    fixed = any(word in base for word in ("naflex", "relpos"))  # which read theirs at any size
    assert told == ([] if fixed or base == "samvit_base_patch16_224" else told[:1])
    assert fixed or base == "samvit_base_patch16_224" or "from 4x4 to 6x6" in told[0]
    assert resampled.model(torch.randn(1, 3, SIZE, SIZE)).shape == plain(pixels)[:1].shape


@torch.no_grad()
def test_tables_that_a_model_computes_are_left_out() -> None:
    """Microsoft's BEiT and earlier timm keep the numbers of relative positions, EVA-02 and DINOv3 their rotary tables."""
    for model, names in (
        (whole_model("BEiT"), ("blocks.0.attn.relative_position_index",)),
        (tiny_eva("EVA-02"), ("rope.freqs_cos", "rope.freqs_sin", "blocks.0.attn.rope.freqs_cos")),
        (tiny_eva("DINOv3"), ("rope.periods",)),
    ):
        state = model.state_dict()
        assert filter_state_dict(state | dict.fromkeys(names, torch.ones(3)), model).keys() == state.keys()
    mixed = tiny_eva("RoPE-ViT mixed")
    assert "rope.freqs" in filter_state_dict(mixed.state_dict(), mixed)


def test_a_dist_token_for_rotary_positions_is_refused_by_that() -> None:
    with pytest.raises(InputError, match="not made for EVA's architecture and models with rotary positions"):
        tiny_eva("RoPE-ViT axial", dist_token=True)
