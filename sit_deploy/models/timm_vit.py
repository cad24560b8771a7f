"""timm's vision transformers: which of them can be slimmed and deployed, and their configurations. Imports timm.

What the deploy form rewrites, or can put together of parts that it passes through, is slimmed. Other vision transformers are
taken whole (`models.whole`), by the name of what keeps them from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import (
    GELU,
    Attention,
    AttentionPoolLatent,
    AttentionRope,
    GELUTanh,
    GluMlp,
    LayerScale,
    Mlp,
    PatchEmbed,
    QuickGELU,
    RmsNorm,
    RmsNormFp32,
    SimpleNorm,
    SimpleNormFp32,
    SwiGLU,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.config import ModelConfig, check_image_sides, not_slimmed
from sit_deploy.models.timm_arguments import split

# each is one operator of ONNX, or a sigmoid and a product
_ACTIVATIONS = (GELU, GELUTanh, QuickGELU, nn.GELU, nn.SiLU)
# timm's modules of vision transformers whose patches stay as many from the first block to the last
MODULES = (
    "deit",
    "vision_transformer",
    "eva",
    "beit",
    "cait",
    "naflexvit",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "vision_transformer_hybrid",
)
# what timm's constructors raise for arguments that they cannot take, sizes of zero among them
NOT_MADE = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError, ArithmeticError)
# of a model that is made with arguments; timm's largest has 7 billion parameters, and 16,384 tokens are an image of 2048 pixels
_MOST_PARAMETERS = 20_000_000_000
_MOST_TOKENS = 20_000
_BLOCKS = (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)
_ATTENTIONS = (Attention, AttentionRope, EvaAttention)
# norms by root mean square, of the channels or of what they are off their mean
RMS_NORMS = (RmsNorm, RmsNormFp32, SimpleNorm, SimpleNormFp32, nn.RMSNorm)
_MLPS = (Mlp, GluMlp, SwiGLU)


def is_timm_model(name: str) -> bool:
    """Say whether timm makes a model of this name, whatever it is; a tag may follow a dot, arguments a colon."""
    return timm.is_model(name.partition(":")[0])


def timm_names() -> list[str]:
    """Return timm's names for vision transformers, most of which can be slimmed."""
    return [name for module in MODULES for name in timm.list_models(module=module)]


@lru_cache
def timm_config(name: str) -> ModelConfig:
    """Return the configuration of one of timm's vision transformers, unslimmed. Makes no weights.

    Raises:
        InputError: another kind of model; names it.
    """
    base, arguments = split(name)
    if base.endswith("."):
        raise InputError(
            f"'{name}' has a dot at the end of timm's name, behind which nothing is; leave it out"
        )
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts without elements, which another argument asks for
            model = timm.create_model(base, pretrained=False, **arguments)
    except NOT_MADE as error:
        if arguments:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:150]
            raise InputError(f"timm cannot make '{name}' ({reason}); check what follows the colon") from None
        if not isinstance(error, RuntimeError):
            raise
        # an unknown tag; timm says which
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"timm cannot make '{name}' ({reason}); leave out what follows the dot") from None
    if arguments:
        _check_made(model, name)
    obstacle = why_whole(model, name)
    data = resolve_model_data_config(model)
    block = model.blocks[0]
    hidden = getattr(getattr(getattr(block, "mlp", None), "fc2", None), "in_features", 4 * model.embed_dim)
    return ModelConfig(
        name,
        model.embed_dim,
        getattr(getattr(block, "attn", None), "num_heads", 1),
        (len(model.blocks),),
        image_size=data["input_size"][-1] if obstacle else model.patch_embed.img_size[0],
        skip_lam=1.0,
        mlp_ratio=hidden / model.embed_dim,
        num_classes=model.num_classes,
        base=name,
        patch_size=patch_side(model),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_pct=data["crop_pct"],
        interpolation=data["interpolation"],
        crop_mode=data["crop_mode"],
        unslimmable=obstacle,
    )


def _check_made(model: nn.Module, name: str) -> None:
    """Refuse what arguments made too large to be made with weights, or run, and parts that are made and never read.

    Raises:
        InputError: names what it would have.
    """
    if isinstance(model, VisionTransformerDistilled):
        for part in _distilled_obstacles(model):
            raise InputError(f"'{name}' has {part}; check what follows the colon")
    parameters = sum(value.numel() for value in model.parameters())
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", 0) or 0
    tokens = patches + getattr(model, "num_prefix_tokens", 0)
    for count, most, what in ((parameters, _MOST_PARAMETERS, "parameters"), (tokens, _MOST_TOKENS, "tokens")):
        if count > most:
            raise InputError(
                f"'{name}' would have {count:,} {what}, and at most {most:,} are made; check what follows the colon"
            )


def patch_side(model: nn.Module) -> int:
    """Return the side in pixels of the patches of a vision transformer of timm."""
    embed = getattr(model, "patch_embed", None) or model.embeds
    size = embed.patch_size
    if hasattr(embed, "backbone"):  # patches of what a convolutional network makes of the pixels
        return embed.feat_ratio()
    return size[0] if isinstance(size, (tuple, list)) else size


def is_exact_gelu(activation: nn.Module) -> bool:
    """Say whether an activation is GELU by the error function, not its approximation by tanh."""
    return isinstance(activation, GELU) or (
        isinstance(activation, nn.GELU) and activation.approximate == "none"
    )


def check_sides(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Refuse an image size whose sides the patches of a model do not divide, unless its authors took it: SigLIP's 384 pixels of 14.

    Raises:
        InputError: names the nearest sizes.
    """
    own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    check_image_sides(img_size, patch_side(model), own[-1] if own else None)


def why_whole(model: nn.Module, name: str) -> str | None:
    """Return what keeps a vision transformer of timm from being slimmed, so that it is taken whole; None for one that slims.

    Raises:
        InputError: another kind of model, or one without blocks, which is not taken at all.
    """
    obstacle = next(_obstacles(model), None)
    if obstacle and type(model).__module__ not in {f"timm.models.{module}" for module in MODULES}:
        raise InputError(
            f"{name} is not supported, for it has {obstacle}; take a vision transformer of timm, such as deit_small_patch16_224"
        )
    if not len(getattr(model, "blocks", ())):
        raise InputError(f"{name} has no blocks; take a model that has")
    return obstacle


def check_supported(model: nn.Module, name: str) -> None:
    """Refuse a model that cannot be slimmed.

    Raises:
        InputError: names the first part that is not supported.
    """
    obstacle = why_whole(model, name)
    if obstacle:
        raise not_slimmed(name, obstacle)


def _obstacles(model: nn.Module) -> Iterator[str]:
    """Yield what `model` has that neither slimming nor the deploy form knows."""
    kind = type(model)
    # a subclass may compute anything; ours is slimmed already
    if kind not in (VisionTransformer, VisionTransformerDistilled, Eva):
        yield f"another architecture ({kind.__module__.split('.')[-1]}.{kind.__name__})"
        return  # nothing below can be asked of it
    yield from _pool_obstacles(model)
    if not isinstance(model.patch_drop, (nn.Identity, type(None))):
        yield "patch dropout"
    if model.pos_embed is None and getattr(model, "rope", None) is None:
        yield "no position embedding"
    if kind is VisionTransformerDistilled:
        yield from _distilled_obstacles(model)
    yield from _embedding_obstacles(model.patch_embed, model.dynamic_img_size)
    for norm in (model.norm_pre, model.norm, model.fc_norm):
        yield from _norm_obstacles(norm, optional=True)
    if not isinstance(model.head, (nn.Linear, nn.Identity)):
        yield f"a {type(model.head).__name__} head"
    if getattr(model, "rope", None) is not None:
        yield from (obstacle for block in model.blocks for obstacle in _block_obstacles(block))


def _pool_obstacles(model: nn.Module) -> Iterator[str]:
    pool = model.attn_pool
    if pool is None:
        if model.global_pool not in ("token", "avg", "max", "avgmax"):
            yield f"'{model.global_pool}' pooling"
    elif type(pool) is not AttentionPoolLatent or model.global_pool != "map":
        yield f"{type(pool).__name__} as its pooling"
    elif pool.pos_embed is not None or not isinstance(pool.k_norm, nn.Identity):
        yield "attention pooling with positions or normalised keys"
    elif not isinstance(pool.proj, nn.Linear) or pool.pool not in ("token", "avg"):
        yield "attention pooling without a projection"


def rotary_table(model: nn.Module) -> Tensor | None:
    """Return the rotary positions of a timm model's patches as its blocks take them, None where it has none.

    (patches, 2 · head_dim), or (depth, heads, patches, 2 · head_dim) where every head has its own.
    """
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    kept = getattr(rope, "feat_shape", None) is not None
    return rope.get_embed() if kept else rope.get_embed(shape=list(model.patch_embed.grid_size))


def rotates_halves(model: nn.Module) -> bool:
    """Say whether a model's rotary positions turn channels half a head apart together, and not neighbours."""
    return bool(getattr(model.blocks[0].attn, "rotate_half", False))


def _distilled_obstacles(model: VisionTransformerDistilled) -> Iterator[str]:
    """As `_obstacles`: parts that timm makes beside a dist token, and leaves out where it computes."""
    if model.reg_token is not None:
        yield "register tokens, which a distilled DeiT of timm does not read"
    if not isinstance(model.fc_norm, nn.Identity):
        yield "a norm after its pooling, which a distilled DeiT of timm does not read"


def _embedding_obstacles(embed: nn.Module, any_size: bool) -> Iterator[str]:
    """As `_obstacles`; a model for images `any_size` leaves the flattening of its patches to what follows."""
    if type(embed) is not PatchEmbed:
        yield f"a {type(embed).__name__} patch embedding"
        return
    size, proj = embed.patch_size, embed.proj
    if proj.kernel_size != size or proj.stride != size or proj.padding != (0, 0):
        yield "overlapping patches"
    if size[0] != size[1]:
        yield f"patches of {size[0]}x{size[1]} pixels"
    yield from _norm_obstacles(embed.norm, optional=True)
    if embed.dynamic_img_pad or (not any_size and not (embed.strict_img_size and embed.flatten)):
        yield "a patch embedding for images of any size"


def _norm_obstacles(norm: nn.Module, optional: bool = False) -> Iterator[str]:
    if optional and isinstance(norm, nn.Identity):
        return
    if not isinstance(norm, RMS_NORMS) and (not isinstance(norm, nn.LayerNorm) or norm.weight is None):
        yield f"{type(norm).__name__} in place of a LayerNorm with weights"


def why_not_rewritten(block: nn.Module) -> str | None:
    """Return what a block has that the deploy form does not rewrite, None for a block that it does.

    Such a block is deployed as PyTorch runs it.
    """
    return next(_block_obstacles(block), None)


def _block_obstacles(block: nn.Module) -> Iterator[str]:
    if type(block) not in _BLOCKS:
        yield f"{type(block).__name__} blocks"
        return
    yield from _norm_obstacles(block.norm1)
    yield from _norm_obstacles(block.norm2)
    for scale in (getattr(block, "ls1", None), getattr(block, "ls2", None)):
        if not isinstance(scale, (nn.Identity, LayerScale, type(None))):
            yield f"{type(scale).__name__} in its blocks"
    attention, mlp = block.attn, block.mlp
    if type(attention) not in _ATTENTIONS:
        yield f"{type(attention).__name__} in place of plain attention"
        return
    for norm in (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity())):
        yield from _norm_obstacles(norm, optional=True)
    if type(mlp) not in _MLPS or not isinstance(mlp.fc2, nn.Linear):
        yield f"{type(mlp).__name__} in place of a plain or gated MLP"
        return
    yield from _norm_obstacles(mlp.norm, optional=True)
    if not isinstance(mlp.act, _ACTIVATIONS):
        yield f"{type(mlp.act).__name__} as its MLP's activation"
