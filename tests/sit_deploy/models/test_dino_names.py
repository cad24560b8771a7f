"""Meta's own files of DINO: under timm's names they are what timm's converter makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.state_dict import filter_state_dict

State = dict[str, torch.Tensor]
VIT: dict[str, Any] = {
    "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 3, "num_classes": 0, "init_values": 1.0,
}  # fmt: skip
ROTARY: dict[str, Any] = {
    "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "dinov3", "num_reg_tokens": 4, "use_fc_norm": False,
}  # fmt: skip


def second(model: nn.Module) -> State:
    """Return weights as facebookresearch/dinov2 names them."""
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.randn(1, 17, 32)
    if model.blocks[0].mlp.fc1.out_features == 2 * model.blocks[0].mlp.fc2.in_features:
        state = {
            k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in state.items()
        }
    return {**state, "mask_token": torch.zeros(1, 32)}


def third(model: nn.Module) -> State:
    """Return weights as facebookresearch/dinov3 names them."""
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    state["storage_tokens"] = state.pop("reg_token")
    for i in range(2):
        q, v = (state.pop(f"blocks.{i}.attn.{n}_bias") for n in "qv")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat((q, torch.zeros(32), v))
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(96)
        for j in (1, 2):
            state[f"blocks.{i}.ls{j}.gamma"] = state.pop(f"blocks.{i}.gamma_{j}")
    for ours, theirs in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
        if "blocks.0.mlp.fc1_g.weight" in model.state_dict():
            state = {k.replace(f"mlp.{ours}.", f"mlp.{theirs}."): v for k, v in state.items()}
    more = {"rope_embed.periods": torch.ones(2), "projectors.0.mlp.0.weight": torch.ones(2, 2)}
    return {**state, **more, "mask_token": torch.zeros(1, 32)}


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], State], Any]] = {
    "DINOv2 with registers": (lambda: VisionTransformer(**VIT, reg_tokens=4, no_embed_class=True), second, vision_transformer),
    "DINOv2, gated": (lambda: VisionTransformer(**VIT, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU), second, vision_transformer),
    "DINOv3, gated": (lambda: Eva(**VIT, **ROTARY, qkv_bias=True, swiglu_mlp=True, swiglu_align_to=8), third, eva),
    "DINOv3": (lambda: Eva(**VIT, **ROTARY, qkv_bias=True), third, eva),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_timm_makes_of_them(kind: str, tmp_path: Path) -> None:
    make, named, module = KINDS[kind]
    model = make()
    state = named(model)
    torch.save(state, tmp_path / "dino.pth")
    read = read_checkpoint(tmp_path / "dino.pth")
    assert "the names of Meta's DINO were taken for timm's" in read.notes
    ours = filter_state_dict(read.state, model)
    model.load_state_dict(ours, strict=True)
    expected = module.checkpoint_filter_fn(dict(state), model)
    assert ours.keys() == {k for k in expected if k != "mask_token"}
    assert all(torch.equal(ours[k], expected[k]) for k in ours)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (32,)])
def test_a_class_token_of_another_shape_is_left_as_it_is(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Added to its position, it would be spread over the channels, and load."""
    make, named, _ = KINDS["DINOv2 with registers"]
    state = {**named(make()), "cls_token": torch.ones(shape)}
    torch.save(state, tmp_path / "dino.pth")
    assert read_checkpoint(tmp_path / "dino.pth").state["cls_token"].shape == shape


@pytest.mark.parametrize(
    ("keys", "mask", "fine"),
    [
        (0.0, None, True),
        (0.0, 1.0, True),
        (0.5, 0.0, True),  # hidden, as Meta's own attention hides it
        (0.5, float("nan"), True),  # a mask that was never set
        (0.5, 1.0, False),
        (0.5, None, False),
        (float("nan"), 0.0, False),
    ],
)
def test_a_bias_of_the_keys_that_is_not_hidden_is_refused(
    keys: float, mask: float | None, fine: bool, tmp_path: Path
) -> None:
    """Timm's model has none, and with rotary positions it changes what attention gives."""
    make, named, _ = KINDS["DINOv3"]
    state = named(make())
    for i in range(2):
        del state[f"blocks.{i}.attn.qkv.bias_mask"]
        state[f"blocks.{i}.attn.qkv.bias"][32:64] = keys
        if mask is not None:
            state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(96).index_fill_(
                0, torch.arange(32, 64), mask
            )
    torch.save(state, tmp_path / "dino.pth")
    if not fine:
        with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.bias gives keys a bias"):
            read_checkpoint(tmp_path / "dino.pth")
        return
    read = read_checkpoint(tmp_path / "dino.pth").state
    assert torch.equal(read["blocks.1.attn.v_bias"], state["blocks.1.attn.qkv.bias"][64:])


def test_what_a_mask_hides_of_the_others_is_hidden(tmp_path: Path) -> None:
    make, named, _ = KINDS["DINOv3"]
    state = named(make())
    state["blocks.0.attn.qkv.bias_mask"] = torch.zeros(96)
    torch.save(state, tmp_path / "dino.pth")
    read = read_checkpoint(tmp_path / "dino.pth").state
    assert not read["blocks.0.attn.q_bias"].any() and read["blocks.1.attn.q_bias"].all()


def test_dinov3_without_its_registers_is_known_all_the_same(tmp_path: Path) -> None:
    make, named, _ = KINDS["DINOv3, gated"]
    state = named(make())
    del state["storage_tokens"]
    torch.save(state, tmp_path / "dino.pth")
    read = read_checkpoint(tmp_path / "dino.pth")
    assert "the names of Meta's DINO were taken for timm's" in read.notes
    assert make().state_dict().keys() - filter_state_dict(read.state, make()).keys() == {"reg_token"}


def test_registers_under_two_names_are_refused(tmp_path: Path) -> None:
    make, named, _ = KINDS["DINOv2 with registers"]
    torch.save({**named(make()), "reg_token": torch.ones(3)}, tmp_path / "dino.pth")
    with pytest.raises(InputError, match="has 'reg_token' twice"):
        read_checkpoint(tmp_path / "dino.pth")
