"""Deploy form: an exact rewrite of a model for inference, before anything is exported.

    BatchNorm → convolution · residual ÷ skip_lam, or LayerScale → `proj` and `fc2` · attention scale → query rows of `qkv`
    keys' bias → nothing · values' bias → `proj` · queries' bias → behind the split into heads
    TSM scalar → its last Linear, whose bias goes · prefix tokens and positions → one table, added to zero-padded tokens
    last block: only the tokens that the head reads (their query, their MLP) · reverse TSMs and the auxiliary head are gone

Every fold (`folding`) is done in float64 and rounded once, so logits equal the plain model's within float rounding.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import Mlp as TimmMlp
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.graph.folding import (
    AnyModel,
    FoldedAttention,
    fold_attention,
    fold_batchnorm,
    fold_gain,
    fold_tsm_scale,
    kept_norm,
    make_linear,
    merged_head,
    position_table,
    residual_gains,
)
from sit_deploy.models.sit import Attention, Block, ConvStem
from sit_deploy.models.timm_vit import is_exact_gelu
from sit_deploy.models.tsm import Mlp, TokenSlimming

AnyAttention = Attention | TimmAttention


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, dim) → (B, heads, N, dim / heads)."""
    return x.reshape(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)


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


class _Attention(nn.Module):
    """Softmax attention with its scale, its biases and the residual gain folded in (`folding.fold_attention`).

    What is left of the biases is added head by head. Between a product and its Split a bias costs TensorRT-RTX a kernel for
    each of queries, keys and values; there it costs one.
    """

    def __init__(self, num_heads: int, folded: FoldedAttention) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("query_bias", folded.query_bias)
        self.register_buffer("key_bias", folded.key_bias)
        self.register_buffer("value_bias", folded.value_bias)
        self.query_norm, self.key_norm = folded.query_norm, folded.key_norm
        self.mixed_norm = folded.mixed_norm
        self.proj = folded.proj

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of pre-scaled queries (B, M, dim) over keys and values (B, N, dim), projected → (B, M, dim)."""
        q, k, v = (_split_heads(t, self.num_heads) for t in (q, k, v))
        q = q if self.query_bias is None else q + self.query_bias
        k = k if self.key_bias is None else k + self.key_bias
        v = v if self.value_bias is None else v + self.value_bias
        q = self.query_norm(q) if self.query_norm else q
        k = self.key_norm(k) if self.key_norm else k
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)
        return self.proj(self.mixed_norm(mixed) if self.mixed_norm else mixed)


class DeployAttention(_Attention):
    """Attention of all tokens: (B, N, dim) → (B, N, dim)."""

    def __init__(
        self, attention: AnyAttention, gain: Tensor | float, *, keep_value_bias: bool = False
    ) -> None:
        folded = fold_attention(attention, gain, keep_value_bias=keep_value_bias)
        super().__init__(attention.num_heads, folded)
        self.qkv = make_linear(folded.qkv, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.qkv(x).chunk(3, dim=-1))


class FirstAttention(_Attention):
    """The last block's attention: queries of the `first` tokens only, (B, N, dim) → (B, first, dim)."""

    def __init__(
        self, attention: AnyAttention, gain: Tensor | float, first: int, *, keep_value_bias: bool = False
    ) -> None:
        folded = fold_attention(attention, gain, keep_value_bias=keep_value_bias)
        super().__init__(attention.num_heads, folded)
        self.first = first
        dim = folded.qkv.shape[1]
        self.q, self.kv = (make_linear(folded.qkv[rows], None) for rows in (slice(dim), slice(dim, None)))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=-1)
        return self.attend(self.q(x[:, : self.first]), k, v)


class DeployBlock(nn.Module):
    """A transformer block without residual gains; given `first`, one that returns only the `first` tokens."""

    def __init__(
        self, block: Block | TimmBlock, first: int | None = None, *, keep_value_bias: bool = False
    ) -> None:
        super().__init__()
        self.first = first
        attention_gain, mlp_gain = residual_gains(block)
        self.norm1 = block.norm1
        self.attn = (
            DeployAttention(block.attn, attention_gain, keep_value_bias=keep_value_bias)
            if first is None
            else FirstAttention(block.attn, attention_gain, first, keep_value_bias=keep_value_bias)
        )
        self.norm2 = block.norm2
        self.mlp = _deploy_mlp(block.mlp, mlp_gain)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.first is None else x[:, : self.first]
        x = residual + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _deploy_mlp(mlp: nn.Module, gain: Tensor | float) -> nn.Module:
    """Return an MLP with its residual gain folded in; another activation, a gate or a norm in it stays the model's own."""
    fc2 = fold_gain(mlp.fc2, gain)
    if isinstance(mlp, Mlp | TimmMlp) and is_exact_gelu(mlp.act) and not kept_norm(mlp, "norm"):
        plain = Mlp(mlp.fc1.in_features, mlp.fc1.out_features, mlp.fc2.out_features)
        plain.fc1, plain.fc2 = mlp.fc1, fc2
        return plain
    other = copy.copy(mlp)
    other._modules = {**mlp._modules, "fc2": fc2}
    return other


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

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, self.prefix :] if self.prefix else x
        assignment = self.fc2(self.act(self.fc1(self.norm(tokens)))).transpose(1, 2).softmax(dim=-1)
        slimmed = assignment @ tokens
        return torch.cat((x[:, : self.prefix], slimmed), dim=1) if self.prefix else slimmed


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
        self.blocks = nn.ModuleList(
            DeployBlock(block, first if i == model.depth - 1 else None, keep_value_bias=keep_value_bias)
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
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.slim_after:
                x = self.tsm[self.slim_after[i]](x)
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
