"""SlimViT: token slimming for any plain vision transformer of timm, by TSMs between its blocks or without training.

Parameter names stay timm's own, with `tsm.*` and `rtsm.*` beside them, so that timm's and DeiT's checkpoints load as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.methods import METHODS, TSM
from sit_deploy.models.config import token_schedule
from sit_deploy.models.forward import SlimmingForward
from sit_deploy.models.rotary import Rotary, check_turns, turns_of
from sit_deploy.models.timm_vit import (
    check_sides,
    check_supported,
    rotary_table,
    rotates_halves,
    why_not_rewritten,
)
from sit_deploy.models.token_reduction import pool_by_size, reductions
from sit_deploy.models.tsm import TokenSlimming, init_linears, reverse_tsms, slim_after


class _SlimTimm(SlimmingForward):
    """What is common to timm's models that are armed with TSMs."""

    has_dist_token = False

    @property
    def img_size(self) -> tuple[int, int]:
        return tuple(self.patch_embed.img_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        return tuple(self.patch_embed.grid_size)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def forward_head(self, x: Tensor, pre_logits: bool = False, sizes: Tensor | None = None) -> Tensor:
        """As timm's; patch tokens that stand for several patches each, `sizes` (B, tokens), count that often where many are pooled."""
        if sizes is None or (self.global_pool == "token" and self.attn_pool is None):
            return super().forward_head(x, pre_logits)
        x = self.head_drop(self.fc_norm(pool_by_size(self, x, sizes)))
        return x if pre_logits else self.head(x)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """As timm's, for an unslimmed model.

        Raises:
            InputError: a slimmed one, whose tokens have no place on a grid.
        """
        if self.slim_after:
            raise InputError(
                "slimmed tokens have no place on a grid; call forward_frd for the recovered ones"
            )
        return super().forward_intermediates(*args, **kwargs)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the token schedule belongs to the size it was made for.

        Raises:
            InputError: always.
        """
        raise InputError("the size of a slimmed model is fixed; create it with another img_size")


class SlimViT(_SlimTimm, VisionTransformer):
    """A vision transformer of timm armed with TSMs; with one stage, the plain one. Made by `slim`, not by its constructor.

    forward: images (B, in_chans, H, W) float → logits (B, num_classes). Head, classifier reset, weight-decay list and
    parameter groups are timm's. The interface beyond timm's is that of `sit_deploy.models.sit.SiT`.
    """

    def _embed(self, x: Tensor) -> Tensor:
        return self.norm_pre(self._pos_embed(self.patch_embed(x)))


class SlimEva(_SlimTimm, Eva):
    """As `SlimViT`, of timm's models with rotary positions (EVA-02, DINOv3, Perception Encoder, RoPE-ViT) and EVA itself."""

    def _start(self, x: Tensor) -> tuple[Tensor, Rotary | None]:
        tokens, table = self._pos_embed(self.patch_embed(x))
        if table is None:
            return self.norm_pre(tokens), None
        turns = turns_of(self.rope, self.grid_size)
        return self.norm_pre(tokens), Rotary(table, turns, self.grid_size, rotates_halves(self))


class SlimDistilledViT(SlimViT, VisionTransformerDistilled):
    """One with a dist token behind its class token, and a head of it: timm's distilled DeiT, or a plain model given both.

    forward: → logits (B, num_classes), the mean of both heads'. Names are those of timm's distilled DeiT.
    """

    has_dist_token = True

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, N, dim) → class token, dist token, registers and patches, with positions; as timm's, which has no registers."""
        x = x.flatten(1, -2)
        tokens = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = [t.expand(x.shape[0], -1, -1) for t in tokens]
        if self.no_embed_class:
            return self.pos_drop(torch.cat((*prefix, x + self.pos_embed), dim=1))
        return self.pos_drop(torch.cat((*prefix, x), dim=1) + self.pos_embed)

    def _heads(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.head(self.head_drop(x[:, 0])), self.head_dist(self.head_drop(x[:, 1]))


_SLIM = {VisionTransformer: SlimViT, VisionTransformerDistilled: SlimViT, Eva: SlimEva}


def slim(
    model: VisionTransformer | Eva,
    stage_blocks: tuple[int, ...],
    keeping_ratio: float = 0.5,
    *,
    kept: tuple[int, ...] | None = None,
    reverse_tsm: bool = False,
    dist_token: bool = False,
    method: str = TSM,
) -> SlimViT | SlimEva:
    """Return a copy of a timm vision transformer whose tokens are merged after the last block of every stage but the final one.

    What merges them is a TSM, or another `method`. Its arguments are those that any of our models takes, and more than seven.

    Args:
        model: not changed; its weights are copied.
        stage_blocks: blocks of each stage; one stage is the plain model, a teacher.
        keeping_ratio: share of the patch tokens that each further stage keeps.
        kept: patch tokens of every stage, in place of those that `keeping_ratio` gives.
        reverse_tsm: make the reverse TSMs that FRD trains with; never needed for inference.
        dist_token: add the distillation token of a CNN teacher and its head, where the model has none.
        method: "tsm", or "transform" or "merge", which need no training (`models.token_reduction`).

    Raises:
        InputError: a model with a part that is not supported (named), stages that do not add up to its depth, an image
            that its patches do not divide, a schedule that leaves no token or grows, blocks that a method without training cannot read
            (named), or a dist token for a model of EVA's kind or one whose head does not read a class token.
    """
    check_supported(model, "this model")
    stage_blocks = tuple(stage_blocks)
    if sum(stage_blocks) != len(model.blocks):
        raise InputError(
            f"stages {stage_blocks} add up to {sum(stage_blocks)} blocks, and the model has {len(model.blocks)}; give a block to one stage each"
        )
    check_sides(model, tuple(model.patch_embed.img_size))
    schedule = token_schedule(model.patch_embed.num_patches, stage_blocks, keeping_ratio, kept)
    # The class of a copy is changed, as no constructor could make another of it: a model does not keep what it was made
    # with. So all that timm knows of it (configuration, dropout, head, later versions' attributes) stays as it is.
    slimmed = copy.deepcopy(model)
    slimmed.__class__ = _SLIM[type(model)]
    if dist_token or isinstance(model, VisionTransformerDistilled):
        _add_dist_token(slimmed)
    slimmed.stage_blocks, slimmed.kept = stage_blocks, schedule
    slimmed.slim_after = slim_after(stage_blocks)
    if slimmed.slim_after:
        _check_rotary(slimmed)
        if method == TSM:
            slimmed.tsm = _initialised(model, [TokenSlimming(model.embed_dim, n) for n in schedule[1:]])
        else:
            check_blocks(model, method)
            slimmed.reduction = reductions(method, schedule)
    if reverse_tsm:
        slimmed.rtsm = _initialised(model, reverse_tsms(model.embed_dim, stage_blocks, schedule))
    return slimmed


def check_blocks(model: nn.Module, method: str) -> None:
    """Refuse a model whose attention a method without training cannot read, or cannot tell how many patches a token stands for.

    Raises:
        InputError: names the part, or the methods that there are.
    """
    if method not in METHODS:
        raise InputError(f"unknown method '{method}'; choose from {', '.join(METHODS)}")
    for index, block in enumerate(model.blocks):
        if why := why_not_rewritten(block):
            raise InputError(
                f"--method {method} reads the attention of plain blocks, and block {index} has {why}; pass --method tsm and train it, or take "
                "the model unslimmed"
            )


def _add_dist_token(model: SlimViT) -> None:
    """Make a `SlimDistilledViT` of a model, in place; what it has already of one stays."""
    if hasattr(model, "dist_token"):
        model.__class__ = SlimDistilledViT
        return
    if isinstance(model, Eva):
        raise InputError(
            "a dist token is not made for EVA's architecture and models with rotary positions; leave out --cnn-teacher, or take a model "
            "such as deit_small_patch16_224"
        )
    if model.global_pool != "token" or not isinstance(model.fc_norm, nn.Identity):
        raise InputError(
            "a dist token stands beside the class token, and the head of this model reads something else; take a model whose head "
            "reads the class token, such as deit_small_patch16_224"
        )

    model.__class__ = SlimDistilledViT

    def new(like: Tensor) -> nn.Parameter:
        return nn.Parameter(trunc_normal_(torch.empty_like(like), std=0.02))

    model.dist_token = new(model.cls_token)
    model.num_prefix_tokens += 1
    if not model.no_embed_class:
        rows = model.pos_embed
        model.pos_embed = nn.Parameter(
            torch.cat((rows[:, :1], new(rows[:, :1]), rows[:, 1:]), dim=1).detach()
        )
    model.distilled_training = False
    model.head_dist = copy.deepcopy(model.head)
    if isinstance(model.head, nn.Linear):
        trunc_normal_(model.head_dist.weight, std=0.02)
        nn.init.zeros_(model.head_dist.bias)


def _check_rotary(model: nn.Module) -> None:
    """Refuse rotary positions that slimmed tokens could not have, and leave the others as they are in training too.

    Raises:
        InputError: see `rotary.turns_of` and `rotary.check_turns`.
    """
    if getattr(model, "rope", None) is None:
        return
    # DINOv3 stretches and shifts its patches' places at random while it trains: those of slimmed tokens would not follow
    model.rope.aug_active = False
    table = rotary_table(model)
    turns = turns_of(model.rope, model.grid_size)
    if not table.is_meta:
        check_turns(turns, table, model.grid_size, rotates_halves(model))


def _initialised(model: nn.Module, modules: Iterable[nn.Module]) -> nn.ModuleList:
    """Return new modules initialised as SiT's, on the device and in the type of the model that they join."""
    joined = nn.ModuleList(modules)
    init_linears(joined)
    return joined.to(next(model.parameters()))
