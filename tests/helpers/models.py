"""Models whose every weight matters, small ones above all, for tests of what is done with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
from timm.layers import GluMlp, LayerScale, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from sit_deploy.models import CONFIGS, create_model
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import SlimEva, SlimViT, slim
from sit_deploy.models.tsm import TokenSlimming
from sit_deploy.models.whole import WholeModel, pass_whole

TINY: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dim": 32,
    "num_heads": 4,
    "stage_blocks": (2, 1, 1, 2),
}
SLIMMED = tuple(name for name, c in CONFIGS.items() if len(c.stage_blocks) > 1 and c.base is None)
# a small vision transformer of timm, and one variation for each of its parts that slimming or deploying must know
VIT: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 16,
    "num_classes": 7,
    "embed_dim": 32,
    "depth": 6,
    "num_heads": 4,
}
VIT_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 1e-5},
    "no qkv bias": {"qkv_bias": False},
    "no bias of proj": {"proj_bias": False},
    "no projection bias": {"proj_bias": False},
    "registers": {"reg_tokens": 4},
    "registers without positions": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "class token without position": {"no_embed_class": True},
    "average": {"global_pool": "avg"},
    "average without class token": {"global_pool": "avg", "class_token": False},
    "average with registers": {
        "global_pool": "avg", "class_token": False, "reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5,
    },
    "average after the norm": {"global_pool": "avg", "fc_norm": False},
    "norm after pooling": {"fc_norm": True},
    "no last norm": {"final_norm": False},
    "norm before the blocks": {"pre_norm": True},
    "patches of 8": {"patch_size": 8, "img_size": 48},
    "patches of 14": {"patch_size": 14, "img_size": 56},
    "not square": {"img_size": (32, 80)},
    "grey": {"in_chans": 1},
    "wide mlp": {"mlp_ratio": 5.5, "num_heads": 2},
}  # fmt: skip
PUBLISHED = tuple(name for name in CONFIGS if "nano" not in name)


def slow_if_published(name: str) -> Any:
    """Return the name of a model as a parameter of a test, which is slow with all but the small ones."""
    return pytest.param(name, marks=pytest.mark.slow) if name in PUBLISHED else name


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that shows when it is dropped, doubled or put elsewhere.

    A fresh model hides errors: biases are zero, BatchNorm is the identity, attention and slimming average evenly.
    Here activations keep their size through the depth and the softmaxes are far from even.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=generator)

    for name, parameter in model.named_parameters():
        if name.endswith(("_token", "pos_embed", "latent")):
            normal(parameter, 0.5)
        if name.endswith(("gamma_1", "gamma_2")):
            parameter.uniform_(0.3, 1.2, generator=generator)
        if name.endswith(("q_bias", "v_bias")):
            normal(parameter, 0.2)
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.uniform_(0.3, 1.2, generator=generator)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            normal(module.weight, 1 / math.sqrt(module.weight[0].numel()))
        if isinstance(module, nn.BatchNorm2d) or hasattr(module, "normalized_shape"):
            module.weight.uniform_(0.5, 1.5, generator=generator)
        if getattr(module, "bias", None) is not None:
            normal(module.bias, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            normal(module.running_mean, 0.3)
            module.running_var.uniform_(0.2, 0.8, generator=generator)
            module.num_batches_tracked.fill_(156_000)
    for module in model.modules():
        if isinstance(module, TokenSlimming):
            module.weight[1].weight.mul_(2)
            module.weight[3].weight.mul_(2)
            module.scale.fill_(1.7)
    return model


def tiny_model(seed: int = 0, **options: Any) -> SiT:
    """Make a randomised SiT of 16, 8, 4 and 2 patch tokens in eval mode; `options` go to `SiT` over those of TINY."""
    return randomise(SiT(**{**TINY, **options}), seed).eval()


# what a vision transformer may have beside
VIT_PARTS: dict[str, dict[str, Any]] = {
    "normalised queries and keys": {"qk_norm": True},
    "normalised queries and keys, no qkv bias": {"qk_norm": True, "qkv_bias": False},
    "norm inside attention": {"scale_attn_norm": True},
    "norm inside the MLP": {"scale_mlp_norm": True},
    "every norm, averaged": {
        "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True, "init_values": 0.1, "global_pool": "avg",
    },
    "tanh GELU": {"act_layer": "gelu_tanh"},
    "QuickGELU": {"act_layer": "quick_gelu"},
    "gated MLP": {"mlp_layer": SwiGLUPacked},
    "gate in the second half": {"mlp_layer": GluMlp, "act_layer": "silu"},
    "norms behind attention and MLP": {"block_fn": ResPostBlock, "init_values": 0.5},
    "gate in a layer of its own": {"mlp_layer": SwiGLU},
    "differential attention": {"attn_layer": "diff"},
    "parallel blocks": {"block_fn": ParallelScalingBlock, "qk_norm": True},
    "two of each in parallel": {"block_fn": ParallelThingsBlock, "global_pool": "avg"},
    "ReLU": {"act_layer": "relu"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "attention pooling behind registers": {"global_pool": "map", "reg_tokens": 2, "act_layer": "gelu_tanh"},
    "attention pooling of all tokens": {"global_pool": "map", "pool_include_prefix": True, "fc_norm": True},
    "largest values": {"global_pool": "max"},
    "mean and largest values of all tokens": {"global_pool": "avgmax", "pool_include_prefix": True},
    "images of any size": {"dynamic_img_size": True, "reg_tokens": 2, "no_embed_class": True},
    "RMS norms": {
        "norm_layer": RmsNorm, "embed_norm_layer": RmsNorm, "mlp_layer": SwiGLU, "act_layer": "silu", "qkv_bias": False,
        "class_token": False, "global_pool": "avg", "fc_norm": False,
    },
    "RMS norms everywhere": {
        "norm_layer": RmsNorm, "embed_norm_layer": RmsNorm, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True,
        "pre_norm": True, "mlp_layer": SwiGLU, "init_values": 0.1,
    },
    "norms by standard deviation": {"norm_layer": "simplenorm", "qk_norm": True, "reg_tokens": 2},
    "PyTorch's RMS norms": {"norm_layer": nn.RMSNorm, "scale_mlp_norm": True, "global_pool": "avg"},
    "norm of patches": {"embed_norm_layer": "layernorm", "dynamic_img_size": True},
    "dist token": {"distilled": True},
    "dist token, images of any size": {"distilled": True, "dynamic_img_size": True},
}  # fmt: skip


# timm's models with rotary positions and EVA itself, by what differs between them
EVA: dict[str, Any] = {**VIT, "head_init_scale": 0}
_DINOV3 = {
    "use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True, "use_abs_pos_emb": False,
    "num_reg_tokens": 4, "dynamic_img_size": True, "init_values": 1e-5,
}  # fmt: skip
EVA_VARIANTS: dict[str, dict[str, Any]] = {
    "EVA": {},
    "EVA-02": {"use_rot_pos_emb": True, "swiglu_mlp": True, "ref_feat_shape": (16, 16)},
    "EVA-02 base": {"use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True},
    "EVA-02 CLIP": {
        "use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "qkv_fused": False,
        "global_pool": "token",
    },
    "EVA-02 enormous": {"use_post_norm": True, "global_pool": "token"},
    "DINOv3": {**_DINOV3, "use_fc_norm": False},
    "DINOv3 huge": {**_DINOV3, "swiglu_mlp": True, "swiglu_align_to": 8, "qkv_bias": False, "global_pool": "token"},
    "Perception Encoder": {
        "attn_type": "rope", "use_rot_pos_emb": True, "use_pre_transformer_norm": True, "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy", "ref_feat_shape": (16, 12), "init_values": 0.1, "use_fc_norm": False,
    },
    "RoPE-ViT axial": {
        "attn_type": "rope", "use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_grid_indexing": "xy",
        "no_embed_class": True, "global_pool": "token",
    },
    "RoPE-ViT mixed": {
        "attn_type": "rope", "use_rot_pos_emb": True, "rope_type": "mixed", "rope_grid_indexing": "xy",
        "global_pool": "token", "img_size": (32, 80),
    },
    "Perception Encoder, core": {
        "attn_type": "rope", "use_rot_pos_emb": True, "use_pre_transformer_norm": True, "rope_grid_indexing": "xy", "global_pool": "map",
        "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 4.0,
    },
    "Sapiens2": {
        "attn_type": "rope", **_DINOV3, "qkv_fused": False, "num_kv_heads": 2, "qk_norm": True,
        "attn_only_layer_scale": True, "global_pool": "token",
    },
    "GenLIP": {"attn_type": "rope", "use_rot_pos_emb": True, "rope_type": "mrope", "rope_mrope_section": (2, 1, 1)},
}  # fmt: skip


def tiny_eva(
    variant: str, stage_blocks: tuple[int, ...] = (2, 1, 1, 2), seed: int = 0, **slimming: Any
) -> SlimEva:
    """Make a randomised model of EVA's kind in eval mode, one of EVA_VARIANTS; `slimming` goes to `slim`."""
    plain = Eva(**{**EVA, **EVA_VARIANTS[variant], "depth": sum(stage_blocks)})
    return randomise(slim(plain, stage_blocks, **slimming), seed).eval()


_SMALL: dict[str, Any] = {"img_size": 64, "num_classes": 7, "embed_dim": 32, "depth": 2, "num_heads": 4}
# timm's models that are taken whole, small ones
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "BEiT": lambda: Beit(**_SMALL, use_rel_pos_bias=True, init_values=0.1),
    "BEiT, shared positions": lambda: Beit(**_SMALL, use_shared_rel_pos_bias=True, use_abs_pos_emb=False),
    "CaiT": lambda: Cait(**_SMALL),
    "relative positions": lambda: VisionTransformerRelPos(**_SMALL),
    "relative positions and class token": lambda: VisionTransformerRelPos(
        **_SMALL, rel_pos_type="bias", class_token=True, shared_rel_pos=True
    ),
    "SAM": lambda: VisionTransformerSAM(
        **_SMALL, use_rel_pos=True, window_size=3, global_attn_indexes=(1,), neck_chans=16
    ),
    "NaFlex": lambda: NaFlexVit(**_SMALL, class_token=True, pos_embed_grid_size=(3, 3)),
    "NaFlex, averaged": lambda: NaFlexVit(**_SMALL, global_pool="avg", embed_proj_type="conv", reg_tokens=2),
}


def whole_model(name: str, seed: int = 0) -> WholeModel:
    """Make a randomised model of WHOLE in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = randomise(pass_whole(WHOLE[name](), (64, 64), "a part"), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # tables of relative positions, which start as zeros
                parameter.normal_(0, 0.5, generator=generator)
    return model.eval()


def plain_vit(seed: int = 0, **options: Any) -> VisionTransformer:
    """Make a randomised vision transformer of timm in eval mode; `options` go to it over those of VIT, `distilled` makes a distilled one."""
    kind = VisionTransformerDistilled if options.pop("distilled", False) else VisionTransformer
    return randomise(kind(**{**VIT, **options}), seed).eval()


def vit_of(parts: str, stage_blocks: tuple[int, ...] = (6,), seed: int = 0, **slimming: Any) -> SlimViT:
    """Make a randomised vision transformer of one of VIT_PARTS in eval mode; `slimming` goes to `slim`."""
    return randomise(slim(plain_vit(**VIT_PARTS[parts]), stage_blocks, **slimming), seed).eval()


def tiny_vit(
    variant: str = "plain", stage_blocks: tuple[int, ...] = (2, 1, 1, 2), seed: int = 0, **slimming: Any
) -> SlimViT:
    """Make a randomised slimmed vision transformer in eval mode, of one of VIT_VARIANTS; `slimming` goes to `slim`."""
    options = {**VIT, **VIT_VARIANTS[variant], "depth": sum(stage_blocks)}
    made = slim(VisionTransformer(**options), stage_blocks, **slimming)
    return randomise(made, seed).eval()


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Make models without values, on the meta device, and without the time that their initialisation takes even there."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
        yield


@contextmanager
def smaller_vits() -> Iterator[None]:
    """Make timm's vision transformers of half the width and half the depth meanwhile, under their own names.

    For what is done with a model of timm, whichever it is.
    """
    from timm.models import deit, vision_transformer

    from sit_deploy.models import timm_vit

    def smaller(make: Any) -> Any:
        def made(variant: str, *, embed_dim: int, depth: int, **options: Any) -> Any:
            return make(variant, embed_dim=embed_dim // 2, depth=depth // 2, **options)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((deit, "_create_deit"), (vision_transformer, "_create_vision_transformer")):
            patch.setattr(module, name, smaller(getattr(module, name)))
        patch.setattr(timm_vit, "timm_config", lru_cache(timm_vit.timm_config.__wrapped__))
        yield


def named_model(name: str, seed: int = 0, **options: Any) -> Any:
    """Make a named model, randomised, in eval mode, without the cost of its own initialisation."""
    with shapes_alone():
        model = create_model(name, **options)
    return randomise(model.to_empty(device="cpu"), seed).eval()


def images(model: SiT | SlimViT, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Return random images (batch, in_chans, H, W) of the model's size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.in_chans, *model.img_size, generator=generator)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference in units of the reference's standard deviation."""
    return ((value - reference).abs().max() / reference.std()).item()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that a rewrite of a layer gives what the layer gave."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# one of each kind that is slimmed: official or timm's, with a class token and without, with positions that are added or turned
OF_EACH_KIND: dict[str, Callable[[], nn.Module]] = {
    "sit": tiny_model,
    "sit with a dist token": lambda: tiny_model(dist_token=True),
    "vit": tiny_vit,
    "average without class token": lambda: tiny_vit("average without class token"),
    "rotary": lambda: tiny_eva("EVA-02"),
}
