"""Deploy form: an exact rewrite of a model for inference, before anything is exported.

    BatchNorm → convolution · residual ÷ skip_lam, or LayerScale → `proj` and `fc2` · attention scale → query rows of `qkv`
    keys' bias → nothing · values' bias → `proj` · queries' bias → behind the split into heads
    TSM scalar → its last Linear, whose bias goes · prefix tokens and positions → one table, added to zero-padded tokens
    rotary positions → cosines and sines, constants until tokens slim · EVA's layers of queries, keys, values → one
    last block: only the tokens that the head reads (their query, their MLP) · reverse TSMs and the auxiliary head are gone

Every fold (`folding`) is done in float64 and rounded once, so logits equal the plain model's within float rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_block import DeployBlock, PassedBlock
from sit_deploy.graph.deploy_positions import DeployPositions
from sit_deploy.graph.folding import (
    AnyModel,
    fold_batchnorm,
    fold_tsm_scale,
    kept_norm,
    merged_head,
    position_table,
)
from sit_deploy.models.sit import Block, ConvStem
from sit_deploy.models.timm_vit import rotates_halves, why_not_rewritten
from sit_deploy.models.tsm import TokenSlimming


class DeployStem(nn.Sequential):
    """The convolutional stem with BatchNorm folded, or timm's patch convolution: (B, 3, H, W) → (B, dim, h, w)."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        if not isinstance(stem, ConvStem):
            self.conv1 = stem.proj
            return
        for i, (conv, bn) in enumerate(stem.layers(), 1):
            self.add_module(f"conv{i}", fold_batchnorm(conv, bn))
            if i < stem.depth:
                self.add_module(f"gelu{i}", nn.GELU())


class DeployTSM(nn.Module):
    """Token slimming with its scalar folded, the prefix tokens going round it: (B, N, dim) → (B, prefix + kept, dim).

    The assignment is transposed before the softmax rather than after, which leaves the softmax on the last axis: the
    one that every engine computes fastest.
    """

    def __init__(self, tsm: TokenSlimming, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.norm, self.fc1, self.act = tsm.weight[0], tsm.weight[1], tsm.weight[2]
        self.fc2 = fold_tsm_scale(tsm)

    def forward(self, x: Tensor, with_assignment: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the tokens; where it is asked for, with the assignment (B, kept, N) that made those behind the prefix."""
        tokens = x[:, self.prefix :] if self.prefix else x
        assignment = self.fc2(self.act(self.fc1(self.norm(tokens)))).transpose(1, 2).softmax(dim=-1)
        slimmed = assignment @ tokens
        x = torch.cat((x[:, : self.prefix], slimmed), dim=1) if self.prefix else slimmed
        return (x, assignment) if with_assignment else x


class DeployEmbedding(nn.Module):
    """Features of the stem (B, dim, h, w) → tokens (B, prefix + h·w, dim) with positions and prefix tokens added.

    The prefix tokens are added to rows of zeros instead of concatenated: no batch-sized copy of them is needed, and so
    no shape arithmetic in the graph.
    """

    def __init__(self, model: AnyModel) -> None:
        super().__init__()
        self.prefix = model.num_prefix_tokens
        self.register_buffer("position", position_table(model))

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        return (F.pad(tokens, (0, 0, self.prefix, 0)) if self.prefix else tokens) + self.position


def _deploy_block(block: nn.Module, first: int | None, **folding: Any) -> nn.Module:
    if isinstance(block, Block) or why_not_rewritten(block) is None:
        return DeployBlock(block, first, **folding)
    return PassedBlock(block, first)


class DeployForm(nn.Module):
    """A model rewritten for inference: images (B, in_chans, H, W) float32 → logits (B, classes).

    Exact: see the module's docstring. Layers that need no folding are shared with the plain model. The head reads the
    class token (and a dist token beside it), or the mean of the patch tokens.

    Raises:
        InputError: a model without a classifier, which has no logits to deploy.
    """

    def __init__(self, model: AnyModel, *, keep_value_bias: bool = False) -> None:
        super().__init__()
        if not isinstance(model.head, nn.Linear):
            raise InputError(
                "this model has no classifier (num_classes=0); deploy one with a head: pass --num-classes"
            )
        prefix = model.num_prefix_tokens
        self.average = getattr(model, "global_pool", "token") == "avg"
        self.prefix = prefix
        first = None if self.average else 1 + model.has_dist_token
        self.stem = DeployStem(model.patch_embed)
        self.embed = DeployEmbedding(model)
        self.norm_pre = kept_norm(model, "norm_pre")
        self.positions = DeployPositions(model) if getattr(model, "rope", None) is not None else None
        rotated = ("halves" if rotates_halves(model) else "neighbours") if self.positions else None
        folding = {"keep_value_bias": keep_value_bias, "rotated": rotated}
        self.blocks = nn.ModuleList(
            _deploy_block(block, first if i == model.depth - 1 else None, **folding)
            for i, block in enumerate(model.blocks)
        )
        self.slim_after = dict(model.slim_after)
        self.tsm = nn.ModuleList(DeployTSM(tsm, prefix) for tsm in getattr(model, "tsm", ()))
        self.norm = kept_norm(model, "norm")
        self.fc_norm = kept_norm(model, "fc_norm")
        self.head = merged_head(model)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(self.stem(images))
        x = self.norm_pre(x) if self.norm_pre else x
        places = None
        for i, block in enumerate(self.blocks):
            x = block(x, self.positions(i, places)) if self.positions else block(x)
            tsm = self.tsm[self.slim_after[i]] if i in self.slim_after else None
            if tsm and self.positions:
                x, assignment = tsm(x, with_assignment=True)
                places = self.positions.merge(assignment, places)
            elif tsm:
                x = tsm(x)
        if self.average and self.prefix:
            x = x[:, self.prefix :]
        x = self.norm(x) if self.norm else x
        x = x.mean(dim=1) if self.average else x.flatten(1)
        return self.head(self.fc_norm(x) if self.fc_norm else x)


@torch.no_grad()
def to_deploy_form(model: AnyModel, *, keep_value_bias: bool = False) -> DeployForm:
    """Return the deploy form of `model`, in eval mode, on the CPU in float32; `model` itself is not changed.

    Args:
        model: what is deployed.
        keep_value_bias: see `folding.fold_attention`; for a model that was trained in 8 bits.

    Raises:
        InputError: a model without a classifier.
    """
    plain = copy.deepcopy(model).eval().float().cpu()
    return DeployForm(plain, keep_value_bias=keep_value_bias).eval().requires_grad_(False)
