"""Deploy form: an exact rewrite of a model for inference, before anything is exported.

    BatchNorm → convolution · residual ÷ skip_lam, or LayerScale → `proj` and `fc2` · attention scale → query rows of `qkv`
    keys' bias → nothing · values' bias → `proj` · queries' bias → behind the split into heads
    TSM scalar → its last Linear, whose bias goes · prefix tokens and positions → one table, added to zero-padded tokens
    rotary positions → cosines and sines, constants until tokens slim · EVA's layers of queries, keys, values → one
    token reduction without training → the next block's queries and keys, folded as that block's (`deploy_reduction`)
    last block: only the tokens that the outputs read (their query, their MLP) · reverse TSMs and the auxiliary head are gone

Every fold (`folding`) is done in float64 and rounded once, so outputs equal the plain model's within float rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn

from sit_deploy.graph.deploy_block import DeployBlock, PassedBlock, written_out
from sit_deploy.graph.deploy_pool import DeployAttentionPool
from sit_deploy.graph.deploy_positions import DeployPositions
from sit_deploy.graph.deploy_reduction import DeployReduction
from sit_deploy.graph.folding import (
    AnyModel,
    fold_batchnorm,
    fold_tsm_scale,
    kept_norm,
    merged_head,
    position_table,
)
from sit_deploy.models.evidence import has_class_token
from sit_deploy.models.outputs import check_outputs
from sit_deploy.models.sit import Block, ConvStem
from sit_deploy.models.timm_vit import rotates_halves, why_not_rewritten
from sit_deploy.models.token_reduction import pool_tokens, size_bias
from sit_deploy.models.tsm import TokenSlimming
from sit_deploy.models.whole import WholeModel
from sit_deploy.outputs import CLS, DEFAULT, FEATURES, LOGITS, PATCHES, in_order


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
        self.norm = kept_norm(model.patch_embed, "norm")
        self.register_buffer("position", position_table(model))

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens) if self.norm else tokens
        return (F.pad(tokens, (0, 0, self.prefix, 0)) if self.prefix else tokens) + self.position


def _deploy_block(block: nn.Module, first: int | None, **folding: Any) -> nn.Module:
    why = None if isinstance(block, Block) else why_not_rewritten(block)
    return PassedBlock(block, why, first) if why else DeployBlock(block, first, **folding)


class DeployForm(nn.Module):
    """A model rewritten for inference: images (B, in_chans, H, W) float32 → logits (B, classes).

    Exact: see the module's docstring. Layers that need no folding are shared with the plain model. The head reads the
    class token (and a dist token beside it), or many tokens, pooled (`deploy_pool`).

    Args:
        model: what is deployed.
        outputs: in place of the logits (`sit_deploy.outputs`): a tensor, or several in their order.
        keep_value_bias: see `folding.fold_attention`.

    Raises:
        InputError: an output that the model has not.
    """

    def __init__(
        self, model: AnyModel, outputs: Sequence[str] = DEFAULT, *, keep_value_bias: bool = False
    ) -> None:
        super().__init__()
        check_outputs(model, outputs)
        self.outputs = in_order(outputs)
        self.in_chans = model.in_chans
        self.pooling = getattr(model, "global_pool", "token")
        attention = getattr(model, "attn_pool", None)
        # of timm's two kinds, one has its prefix tokens pooled too where it says so, the other where attention pools
        self.pools_prefix = getattr(
            model, "pool_include_prefix", isinstance(model, Eva) and attention is not None
        )
        self.prefix = prefix = model.num_prefix_tokens
        self.has_dist_token = model.has_dist_token
        first = None if self._reads_patches else 1 + (self.has_dist_token and self.outputs != (CLS,))
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
        self.reduction = nn.ModuleList(self._reductions(model, rotated))
        self.norm = kept_norm(model, "norm")
        self.pool = DeployAttentionPool(attention) if attention is not None and self._pools else None
        self.fc_norm = kept_norm(model, "fc_norm")
        self.head = merged_head(model) if LOGITS in self.outputs else None

    def _reductions(self, model: AnyModel, rotated: str | None) -> Iterator[nn.Module]:
        """Yield what merges tokens without training after each stage but the last; where that keeps them all, an Identity."""
        for block, step in model.slim_after.items() if hasattr(model, "reduction") else ():
            if model.kept[step] == model.kept[step + 1]:
                yield nn.Identity()
                continue
            behind, asking = model.blocks[block + 1], has_class_token(model)
            yield DeployReduction(model.reduction[step], behind, self.prefix, asking, rotated=rotated)

    @property
    def _pools(self) -> bool:
        """Whether an output is made of many tokens."""
        return self.pooling != "token" and bool({LOGITS, FEATURES}.intersection(self.outputs))

    @property
    def _reads_patches(self) -> bool:
        """Whether an output reads the patch tokens of the last block."""
        return PATCHES in self.outputs or self._pools

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.embed(self.stem(images))
        x = self.norm_pre(x) if self.norm_pre else x
        places = sizes = None
        for i, block in enumerate(self.blocks):
            given = (self.positions(i, places),) if self.positions else ()
            x = (
                block(x, *given)
                if sizes is None
                else block(x, *(given or (None,)), size_bias(sizes, self.prefix))
            )
            if i not in self.slim_after:
                continue
            step, assignment = self.slim_after[i], None
            if self.reduction:
                if isinstance(self.reduction[step], DeployReduction):
                    turn = self.positions(i + 1, places) if self.positions else None
                    x, sizes, assignment = self.reduction[step](x, sizes, turn)
            elif self.positions:
                x, assignment = self.tsm[step](x, with_assignment=True)
            else:
                x = self.tsm[step](x)
            if self.positions and assignment is not None:
                places = self.positions.merge(assignment, places)
        # nothing reads the prefix
        behind = (
            self.pooling != "token" and self.prefix > 0 and CLS not in self.outputs and not self.pools_prefix
        )
        x = x[:, self.prefix :] if behind else x
        x = self.norm(x) if self.norm else x
        patches = x[:, self.prefix :] if self.prefix and not behind and self._reads_patches else x
        made = {CLS: x[:, 0]} if CLS in self.outputs else {}
        made |= {PATCHES: patches} if PATCHES in self.outputs else {}
        if {LOGITS, FEATURES}.intersection(self.outputs):
            made |= self._pooled(x, patches, sizes)
        given = tuple(made[name] for name in self.outputs)
        return given if len(given) > 1 else given[0]

    def _pooled(self, x: Tensor, patches: Tensor, sizes: Tensor | None) -> dict[str, Tensor]:
        """Normalised tokens, and those of the patches among them → features (B, dim) and logits (B, classes), as asked for.

        Where patch tokens have `sizes`, (B, kept), each counts that often.
        With a dist token, features are the mean of the two tokens, as timm has it, and logits that of two heads.
        """
        tokens = 1 + self.has_dist_token
        if self.pooling != "token":
            pooled = x if self.pools_prefix else patches
            if sizes is not None and self.pools_prefix:
                sizes = F.pad(sizes, (self.prefix, 0), value=1.0)
            read = self.pool(pooled, sizes) if self.pool else pool_tokens(pooled, self.pooling, sizes)
        else:
            read = (x[:, :tokens] if self._reads_patches else x).flatten(1)
        read = self.fc_norm(read) if self.fc_norm else read
        made = {LOGITS: self.head(read)} if self.head else {}
        if FEATURES in self.outputs:
            both = tokens > 1 and self.pooling == "token"
            made[FEATURES] = x[:, :tokens].mean(dim=1) if both else read
        return made


def passed_through(form: nn.Module) -> str | None:
    """Return which parts of a deploy form are as PyTorch runs them, and what keeps them from being rewritten; None where none is."""
    if isinstance(form, WholeModel):
        return f"the whole model, which has {form.why}"
    blocks = {i: b.why for i, b in enumerate(getattr(form, "blocks", ())) if isinstance(b, PassedBlock)}
    if not blocks:
        return None
    which = "all blocks" if len(blocks) == len(form.blocks) else f"blocks {', '.join(map(str, blocks))}"
    return f"{which}, which have {', '.join(dict.fromkeys(blocks.values()))}"


@torch.no_grad()
def to_deploy_form(
    model: AnyModel, outputs: Sequence[str] = DEFAULT, *, keep_value_bias: bool = False
) -> DeployForm:
    """Return the deploy form of `model`, in eval mode, on the CPU in float32; `model` itself is not changed.

    Args:
        model: what is deployed.
        outputs: that it gives.
        keep_value_bias: see `folding.fold_attention`; for a model that was trained in 8 bits.

    Raises:
        InputError: an output that the model has not.
    """
    plain = copy.deepcopy(model).eval().float().cpu()
    if isinstance(plain, WholeModel):
        check_outputs(plain, outputs)
        plain.outputs = in_order(outputs)
        return written_out(plain).requires_grad_(False)
    return DeployForm(plain, outputs, keep_value_bias=keep_value_bias).eval().requires_grad_(False)
