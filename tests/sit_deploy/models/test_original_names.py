"""Original files of SAM, Perception Encoder, Sapiens2, EVA-02 and AIMv2: under timm's names they are what timm's own filters make of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm, RmsNorm, SwiGLU
from timm.models import eva, vision_transformer, vision_transformer_sam
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.load import load_model
from sit_deploy.models.state_dict import filter_state_dict

State = dict[str, torch.Tensor]
VIT: dict[str, Any] = {
    "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 3, "num_classes": 0,
}  # fmt: skip
ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}


def noise(model: nn.Module) -> State:
    return {k: torch.randn_like(v) for k, v in model.state_dict().items()}


def renamed(state: State, *pairs: tuple[str, str], prefix: str = "") -> State:
    """Return weights whose names are exchanged, each by the first pattern that fits."""
    made = {}
    for key, value in state.items():
        name = next((re.sub(a, b, key) for a, b in pairs if re.search(a, key)), key)
        made[prefix + name] = value
    return made


def sam(model: nn.Module) -> State:
    """As facebookresearch/segment-anything names them, its decoder of masks beside."""
    own = renamed(noise(model), (r"mlp\.fc", "mlp.lin"), prefix="image_encoder.")
    others = {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.randn(2, 16),
        "prompt_encoder.point_embeddings.0.weight": torch.randn(1, 32),
        "mask_decoder.transformer.layers.0.self_attn.q_proj.weight": torch.randn(32, 32),
        "mask_decoder.transformer.layers.0.norm1.weight": torch.randn(32),
        "mask_decoder.output_hypernetworks_mlps.0.layers.0.weight": torch.randn(32, 32),
    }
    return {**own, **others}


def perception(model: nn.Module, prefix: str = "visual.") -> State:
    """As facebookresearch/perception_models names them."""
    state = noise(model)
    made: State = {}
    if "cls_token" in state:
        made["class_embedding"] = state.pop("cls_token")[0, 0]
    made["positional_embedding"] = state.pop("pos_embed")[0]
    if "head.weight" in state:
        made["proj"] = state.pop("head.weight").T.contiguous()
        del state["head.bias"]
    for kind in ("weight", "bias"):
        if f"attn_pool.q.{kind}" in state:
            parts = [state.pop(f"attn_pool.{n}.{kind}") for n in ("q", "kv")]
            made[f"attn_pool.attn.in_proj_{kind}"] = torch.cat(parts)
    made |= renamed(
        state,
        (r"attn_pool\.latent", "attn_pool.probe"),
        (r"attn_pool\.proj\.", "attn_pool.attn.out_proj."),
        (r"attn_pool\.norm\.", "attn_pool.layernorm."),
        (r"attn_pool\.mlp\.fc1", "attn_pool.mlp.c_fc"),
        (r"attn_pool\.mlp\.fc2", "attn_pool.mlp.c_proj"),
        (r"patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"blocks\.(\d+)\.norm(\d)", r"transformer.resblocks.\1.ln_\2"),
        (r"blocks\.(\d+)\.gamma_(\d)", r"transformer.resblocks.\1.ls_\2.gamma"),
        (r"blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
        (r"blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
        (r"blocks\.(\d+)\.mlp\.fc1", r"transformer.resblocks.\1.mlp.c_fc"),
        (r"blocks\.(\d+)\.mlp\.fc2", r"transformer.resblocks.\1.mlp.c_proj"),
    )
    whole = {prefix + k: v for k, v in made.items()}
    if prefix:  # of images and texts
        whole |= {
            "logit_scale": torch.ones(()),
            "positional_embedding": torch.randn(8, 16),
            "token_embedding.weight": torch.randn(9, 16),
            "transformer.resblocks.0.attn.in_proj_weight": torch.randn(48, 16),
            "ln_final.weight": torch.randn(16),
            "text_projection": torch.randn(16, 32),
        }
    return whole


def sapiens(model: nn.Module) -> State:
    """As facebookresearch/sapiens2 names them."""
    made = renamed(
        noise(model),
        (r"^reg_token$", "storage_tokens"),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
        (r"attn\.([qkv])_proj\.", r"attn.w\1."),
        (r"gamma_1$", "attn.gamma.weight"),
        (r"mlp\.fc1\.", "ffn.w12."),
        (r"mlp\.fc2\.", "ffn.w3."),
        (r"blocks\.(\d+)\.norm([12])\.", r"blocks.\1.ln\2."),
        (r"^norm\.", "ln1."),
    )
    return {**made, "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(2)}


def eva02(model: nn.Module, prefix: str = "") -> State:
    """As baaivision/EVA names them."""
    made = renamed(
        noise(model),
        (r"mlp\.norm\.", "mlp.ffn_ln."),
        (r"attn\.norm\.", "attn.inner_attn_ln."),
        (r"mlp\.fc1\.", "mlp.w12."),
        (r"mlp\.fc1_g\.", "mlp.w1."),
        (r"mlp\.fc1_x\.", "mlp.w2."),
        (r"mlp\.fc2\.", "mlp.w3."),
        (r"attn\.([qv])_proj\.bias", r"attn.\1_bias"),
        prefix=prefix,
    )
    more = {"rope.freqs_cos": torch.ones(16, 8), "rope.freqs_sin": torch.ones(16, 8)}
    more |= {f"blocks.{i}.attn.{k}": v for i in range(2) for k, v in list(more.items())[:2]}
    texts = {"text.ln_final.weight": torch.ones(16), "logit_scale": torch.ones(())} if prefix else {}
    return {**made, **{prefix + k: v for k, v in more.items()}, **texts}


def aim(model: nn.Module) -> State:
    """As apple/ml-aim names them."""
    return renamed(
        noise(model),
        (r"patch_embed\.", "preprocessor.patchifier."),
        (r"^pos_embed$", "preprocessor.pos_embed"),
        (r"^norm\.", "trunk.post_trunk_norm."),
        (r"blocks\.(\d+)\.norm([12])\.", r"trunk.blocks.\1.norm_\2."),
        (r"blocks\.(\d+)\.mlp\.fc1_g\.", r"trunk.blocks.\1.mlp.fc1."),
        (r"blocks\.(\d+)\.mlp\.fc1_x\.", r"trunk.blocks.\1.mlp.fc3."),
        (r"blocks\.", "trunk.blocks."),
    )


def beit3(model: nn.Module) -> State:
    """As microsoft/unilm names them, with the branch of texts."""
    state, made = noise(model), {}
    for key in [k for k in state if ".attn.qkv." in k]:
        for name, part in zip("qkv", state.pop(key).chunk(3), strict=True):
            made[key.replace("qkv", f"{name}_proj")] = part.clone()
    made["encoder.embed_positions.weight"] = torch.cat((torch.randn(2, 32), state.pop("pos_embed")[0]))
    own = renamed(
        {**state, **made},
        (r"^patch_embed\.", "beit3.vision_embed."),
        (r"^cls_token$", "beit3.vision_embed.cls_token"),
        (r"encoder\.embed_positions\.", "beit3.encoder.embed_positions.A."),
        (r"blocks\.(\d+)\.norm1\.", r"beit3.encoder.layers.\1.self_attn_layer_norm.A."),
        (r"blocks\.(\d+)\.norm2\.", r"beit3.encoder.layers.\1.final_layer_norm.A."),
        (r"blocks\.(\d+)\.attn\.norm\.", r"beit3.encoder.layers.\1.self_attn.inner_attn_ln.A."),
        (r"blocks\.(\d+)\.attn\.proj\.", r"beit3.encoder.layers.\1.self_attn.out_proj.A."),
        (r"blocks\.(\d+)\.attn\.([qkv])_proj\.", r"beit3.encoder.layers.\1.self_attn.\2_proj.A."),
        (r"blocks\.(\d+)\.mlp\.norm\.", r"beit3.encoder.layers.\1.ffn.ffn_layernorm.A."),
        (r"blocks\.(\d+)\.mlp\.(fc\d)\.", r"beit3.encoder.layers.\1.ffn.\2.A."),
    )
    texts = {k.replace(".A.", ".B."): torch.randn_like(v) for k, v in own.items() if ".A." in k}
    more = {
        "beit3.text_embed.weight": torch.randn(9, 32),
        "beit3.vision_embed.mask_token": torch.zeros(1, 1, 32),
    }
    return {**own, **texts, **more}


NORM = {"norm_layer": partial(LayerNorm, eps=1e-5)}
PE = {**VIT, **ROTARY, **NORM, "attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_offset": 1.0}
SAPIENS = {
    **VIT, "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "dinov3", "num_reg_tokens": 4, "use_fc_norm": False,
    "attn_type": "rope", "qkv_fused": False, "qkv_bias": True, "init_values": 1.0, "norm_layer": partial(RmsNorm, eps=1e-6),
}  # fmt: skip
SWIGLU = {**VIT, **ROTARY, "swiglu_mlp": True}
WINDOWS = {"use_rel_pos": True, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 16}

KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], State], Any, str]] = {
    "SAM": (lambda: VisionTransformerSAM(**VIT, **WINDOWS), sam, vision_transformer_sam, "Segment Anything"),
    "PE core": (lambda: Eva(**{**PE, "num_classes": 24}, global_pool="map", attn_pool_num_heads=4, attn_pool_mlp_ratio=4.0), perception, eva, "Perception Encoder"),
    "PE of images alone": (lambda: Eva(**PE, global_pool="map", attn_pool_num_heads=4, attn_pool_mlp_ratio=4.0), partial(perception, prefix=""), eva, "Perception Encoder"),
    "PE without class token": (lambda: Eva(**PE, class_token=False, init_values=0.1, use_fc_norm=False), partial(perception, prefix=""), eva, "Perception Encoder"),
    "Sapiens2": (lambda: Eva(**SAPIENS), sapiens, eva, "Sapiens2"),
    "EVA-02": (lambda: Eva(**SWIGLU), eva02, eva, "EVA-02"),
    "EVA-02 with norms inside": (lambda: Eva(**SWIGLU, scale_mlp=True, qkv_fused=False), eva02, eva, "EVA-02"),
    "EVA-02 CLIP": (lambda: Eva(**{**SWIGLU, "num_classes": 24}, scale_mlp=True, scale_attn_inner=True, qkv_fused=False, global_pool="token"), partial(eva02, prefix="visual."), eva, "EVA-02"),
    "BEiT-3": (lambda: VisionTransformer(**VIT, scale_attn_norm=True, scale_mlp_norm=True, global_pool="avg", norm_layer=partial(LayerNorm, eps=1e-5)), beit3, vision_transformer, "BEiT-3"),
    "AIMv2": (lambda: VisionTransformer(**VIT, class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False, mlp_layer=SwiGLU, norm_layer=partial(RmsNorm, eps=1e-5)), aim, vision_transformer, "AIMv2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_timm_makes_of_them(kind: str, tmp_path: Path) -> None:
    make, named, module, title = KINDS[kind]
    model = make()
    state = named(model)
    assert state.keys() != model.state_dict().keys()
    torch.save({"model": state}, tmp_path / "original.pth")
    read = read_checkpoint(tmp_path / "original.pth")
    assert any(note.startswith(f"the names of {title} were taken for timm's") for note in read.notes)
    ours = filter_state_dict(read.state, model)
    model.load_state_dict(ours, strict=True)
    expected = module.checkpoint_filter_fn(dict(state), model)
    assert ours.keys() <= expected.keys()
    assert all(torch.equal(ours[k], expected[k]) for k in ours)


def test_samvit_is_built_of_its_original_file(tmp_path: Path) -> None:
    """By name, as `build` does it; what is left out is named, and one weight less or more is refused in a line."""
    name = "samvit_base_patch16:depth=1"
    state = sam(load_model(name, image_size=224).model)
    torch.save(state, tmp_path / "sam_vit_b.pth")
    loaded = load_model(name, tmp_path / "sam_vit_b.pth", 224, headless=True)
    assert torch.equal(loaded.model.blocks[0].mlp.fc1.weight, state["image_encoder.blocks.0.mlp.lin1.weight"])
    assert any(
        "left out 5 entries that are no part of the model: prompt_encoder." in note for note in loaded.notes
    )
    for key, said in (("image_encoder.neck.1.weight", "1 missing"), (None, "1 unexpected")):
        broken = dict(state)
        if key:
            del broken[key]
        else:
            broken["image_encoder.blocks.0.extra.weight"] = torch.ones(3)
        torch.save(broken, tmp_path / "broken.pth")
        with pytest.raises(InputError, match=said) as refusal:
            load_model(name, tmp_path / "broken.pth", 224, headless=True)
        assert "\n" not in str(refusal.value)


def test_the_decoder_of_mae_is_left_out(tmp_path: Path) -> None:
    model = VisionTransformer(**VIT)
    state = noise(model)
    decoder = {
        "decoder_pos_embed": torch.zeros(1, 17, 8), "decoder_embed.weight": torch.zeros(8, 32), "decoder_embed.bias": torch.zeros(8),
        "decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(768, 8), "mask_token": torch.zeros(1, 1, 8),
    }  # fmt: skip
    torch.save({"model": {**state, **decoder}}, tmp_path / "mae.pth")
    read = read_checkpoint(tmp_path / "mae.pth")
    assert read.state.keys() == state.keys() and any("left out 7 entries" in note for note in read.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_lacks_one_weight_is_known_all_the_same(kind: str, tmp_path: Path) -> None:
    """Else every name of it is told to be unexpected, and the one that is missing is not."""
    make, named, _, title = KINDS[kind]
    state = named(make())
    for key in [k for k in state if re.search(r"(blocks|layers|resblocks)\.0\.|neck\.0|proj", k)]:
        torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "lacks.pth")
        notes = read_checkpoint(tmp_path / "lacks.pth").notes
        assert any(note.startswith(f"the names of {title} were taken for timm's") for note in notes), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_under_two_names_is_refused(kind: str, tmp_path: Path) -> None:
    """The last in the file would be taken, whichever that is."""
    make, named, _, _ = KINDS[kind]
    model = make()
    state = named(model)
    prefix = next((p for p in ("image_encoder.", "visual.") if any(k.startswith(p) for k in state)), "")
    double = next(
        prefix + k for k in model.state_dict() if k.startswith("blocks.0.mlp.") and prefix + k not in state
    )
    torch.save({**state, double: torch.ones(3)}, tmp_path / "both.pth")
    with pytest.raises(InputError, match=f"has '{re.escape(double)}' twice, under the names of timm and of "):
        read_checkpoint(tmp_path / "both.pth")
