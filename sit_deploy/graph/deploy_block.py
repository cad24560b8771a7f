"""A transformer block's deploy form: its attention and its MLP with scales, biases and residual gains folded in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, SwiGLU
from timm.layers import Mlp as TimmMlp
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from sit_deploy.graph.deploy_norm import deploy_norm
from sit_deploy.graph.folding import (
    FoldedAttention,
    fold_attention,
    fold_gain,
    kept_norm,
    make_linear,
    residual_gains,
)
from sit_deploy.models.evidence import normalises_behind
from sit_deploy.models.sit import Attention
from sit_deploy.models.timm_vit import is_exact_gelu
from sit_deploy.models.tsm import Mlp

AnyAttention = Attention | TimmAttention | AttentionRope | EvaAttention


Turn = tuple[Tensor, Tensor]  # cosines and sines, see `graph.deploy_positions`


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, dim) → (B, heads, N, dim / heads)."""
    return x.reshape(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)


def turned(x: Tensor, turn: Turn) -> Tensor:
    """Turn the two halves of the channels of each head into each other."""
    cosine, sine = turn
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((second, first), dim=-1) * sine


class _Attention(nn.Module):
    """Softmax attention with its scale, its biases and the residual gain folded in (`folding.fold_attention`).

    What is left of the biases is added head by head. Between a product and its Split a bias costs TensorRT-RTX a kernel for
    each of queries, keys and values; there it costs one.
    """

    def __init__(self, num_heads: int, folded: FoldedAttention, first: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.first = num_heads, first
        self.register_buffer("query_bias", folded.query_bias)
        self.register_buffer("key_bias", folded.key_bias)
        self.register_buffer("value_bias", folded.value_bias)
        self.query_norm, self.key_norm = folded.query_norm, folded.key_norm
        self.mixed_norm = folded.mixed_norm
        self.gate = folded.gate
        self.proj = folded.proj

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None, bias: Tensor | None
    ) -> Tensor:
        """Attention of pre-scaled queries (B, M, dim) over keys and values (B, N, dim), projected → (B, M, dim).

        `x` are the tokens that ask, (B, M, dim), which a gate reads; `bias` is added to the logits, (B, 1, 1, N).
        """
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        q = q if self.query_bias is None else q + self.query_bias
        k = k if self.key_bias is None else k + self.key_bias
        v = v if self.value_bias is None else v + self.value_bias
        q = self.query_norm(q) if self.query_norm else q
        k = self.key_norm(k) if self.key_norm else k
        if turn is not None:  # the first tokens are prefix tokens, which have no place
            q, k = q if self.first else turned(q, turn), turned(k, turn)
        logits = q @ k.transpose(-2, -1)
        weights = torch.softmax(logits if bias is None else logits + bias, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)
        mixed = self.mixed_norm(mixed) if self.mixed_norm else mixed
        return self.proj(mixed * self.gate(x).sigmoid() if self.gate else mixed)


class DeployAttention(_Attention):
    """Attention of all tokens: (B, N, dim) → (B, N, dim)."""

    def __init__(self, attention: AnyAttention, gain: Tensor | float, **folding: Any) -> None:
        folded = fold_attention(attention, gain, **folding)
        super().__init__(attention.num_heads, folded)
        self.qkv = make_linear(folded.qkv, None)

    def forward(self, x: Tensor, turn: Turn | None = None, bias: Tensor | None = None) -> Tensor:
        return self.attend(x, *self.qkv(x).chunk(3, dim=-1), turn, bias)


class FirstAttention(_Attention):
    """The last block's attention: queries of the `first` tokens only, (B, N, dim) → (B, first, dim)."""

    def __init__(self, attention: AnyAttention, gain: Tensor | float, first: int, **folding: Any) -> None:
        folded = fold_attention(attention, gain, **folding)
        super().__init__(attention.num_heads, folded, first)
        dim = folded.qkv.shape[0] // 3
        self.q, self.kv = (make_linear(folded.qkv[rows], None) for rows in (slice(dim), slice(dim, None)))

    def forward(self, x: Tensor, turn: Turn | None = None, bias: Tensor | None = None) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=-1)
        asking = x[:, : self.first]
        return self.attend(asking, self.q(asking), k, v, turn, bias)


class DeployBlock(nn.Module):
    """A transformer block without residual gains; given `first`, one that returns only the `first` tokens.

    Args:
        block: a SiT's, or one of timm's that `models.timm_vit.why_not_rewritten` finds nothing in.
        first: how many tokens are wanted; all by default.
        folding: see `folding.fold_attention`.
    """

    def __init__(self, block: nn.Module, first: int | None = None, **folding: Any) -> None:
        super().__init__()
        self.first = first
        self.norms_last = normalises_behind(block)
        attention_gain, mlp_gain = residual_gains(block)
        self.norm1 = deploy_norm(block.norm1)
        self.attn = (
            DeployAttention(block.attn, attention_gain, **folding)
            if first is None
            else FirstAttention(block.attn, attention_gain, first, **folding)
        )
        self.norm2 = deploy_norm(block.norm2)
        self.mlp = deploy_mlp(block.mlp, mlp_gain)

    def forward(self, x: Tensor, turn: Turn | None = None, bias: Tensor | None = None) -> Tensor:
        residual = x if self.first is None else x[:, : self.first]
        if self.norms_last:
            x = residual + self.norm1(self.attn(x, turn, bias))
            return x + self.norm2(self.mlp(x))
        x = residual + self.attn(self.norm1(x), turn, bias)
        return x + self.mlp(self.norm2(x))


class PassedBlock(nn.Module):
    """A block as PyTorch runs it, for what it has (`why`); given `first`, with only the `first` tokens of what it returns."""

    def __init__(self, block: nn.Module, why: str, first: int | None = None) -> None:
        super().__init__()
        self.block, self.why, self.first = written_out(block), why, first

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x if self.first is None else x[:, : self.first]


class _MeanOfPixels(nn.Module):
    """(B, dim, h, w) → (B, dim, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


def written_out(module: nn.Module) -> nn.Module:
    """Return a module of timm's with what the exporter has no good operators for written in others, in place.

    Attention is the products and the softmax that it is: as one fused operator, batch and heads would be counted together, as
    no engine knows attention by. A mean of all pixels would gather them by their numbers.
    """
    for part in module.modules():
        if getattr(part, "fused_attn", False):
            part.fused_attn = False
        for name, child in part.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(part, name, _MeanOfPixels())
    return module


def deploy_mlp(mlp: nn.Module, gain: Tensor | float) -> nn.Module:
    """Return an MLP with its residual gain folded in; another activation, a gate or a norm in it stays the model's own."""
    fc2 = fold_gain(mlp.fc2, gain)
    if isinstance(mlp, SwiGLU):
        return _GatedMlp(mlp, fc2)
    if isinstance(mlp, Mlp | TimmMlp) and is_exact_gelu(mlp.act) and not kept_norm(mlp, "norm"):
        plain = Mlp(mlp.fc1.in_features, mlp.fc1.out_features, mlp.fc2.out_features)
        plain.fc1, plain.fc2 = mlp.fc1, fc2
        return plain
    other = copy.copy(mlp)
    other._modules = {**mlp._modules, "norm": deploy_norm(mlp.norm), "fc2": fc2}
    return other


class _GatedMlp(nn.Module):
    """timm's SwiGLU with the layers of gate and values as one product: (B, N, dim) → (B, N, dim)."""

    def __init__(self, mlp: SwiGLU, fc2: nn.Linear) -> None:
        super().__init__()
        layers = (mlp.fc1_g, mlp.fc1_x)
        bias = None if mlp.fc1_g.bias is None else torch.cat([layer.bias for layer in layers])
        self.fc1 = make_linear(torch.cat([layer.weight for layer in layers]), bias)
        self.act, self.norm, self.fc2 = mlp.act, kept_norm(mlp, "norm"), fc2

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        hidden = self.act(gate) * value
        return self.fc2(self.norm(hidden) if self.norm else hidden)
