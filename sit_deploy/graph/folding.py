"""Folding one layer into the next, exactly: in float64, rounded to float32 once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from sit_deploy.graph.deploy_norm import deploy_norm, scaled_norm
from sit_deploy.models.sit import Block, SiT
from sit_deploy.models.slim import SlimEva, SlimViT
from sit_deploy.models.tsm import TokenSlimming

AnyModel = SiT | SlimViT | SlimEva


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a float32 Linear of float64 tensors: weight (out, in), bias (out,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.float().contiguous()
    if bias is not None:
        linear.bias.data = bias.float()
    return linear


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution with bias that equals `bn(conv(x))` in eval mode."""
    gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=True
    )
    folded.weight.data = (conv.weight.double() * gain.view(-1, 1, 1, 1)).float()
    folded.bias.data = (bn.bias.double() - bn.running_mean.double() * gain).float()
    return folded


def fold_gain(linear: nn.Linear, gain: Tensor | float) -> nn.Linear:
    """Return a Linear that equals `gain * linear(x)`; the gain is one number, or one for each output."""
    rows = torch.as_tensor(gain, dtype=torch.float64).reshape(-1, 1)
    bias = None if linear.bias is None else linear.bias.double() * rows[:, 0]
    return make_linear(linear.weight.double() * rows, bias)


def residual_gains(block: nn.Module) -> tuple[Tensor | float, Tensor | float]:
    """Return what a block multiplies the results of its attention and of its MLP by: 1 / skip_lam, or LayerScale."""
    if isinstance(block, Block):
        return 1 / block.skip_lam, 1 / block.skip_lam
    first, second = (_layer_scale(block, i) for i in (1, 2))
    return first, second


def _layer_scale(block: nn.Module, index: int) -> Tensor | float:
    """Return a LayerScale of a block of timm's, a module or a parameter of its own; 1 where it has none."""
    gamma = getattr(block, f"gamma_{index}", None)
    scale = getattr(block, f"ls{index}", None)
    gamma = scale.gamma if isinstance(scale, LayerScale) else gamma
    return 1.0 if gamma is None else gamma.double()


@dataclass(frozen=True)
class FoldedAttention:
    """The weights of an attention, its scale and the residual gain folded in.

    Attributes:
        qkv: queries, keys and values of tokens, (3·dim, tokens' width), without a bias.
        query_bias: what is added to the queries, (heads, 1, dim / heads); None where they have no bias.
        value_bias: what is added to the values, alike; None where `proj` has taken it, or there is none.
        proj: of the averaged values, with the gain.
        key_bias: what is added to the keys, like that of queries; None but before a norm or a turn.
        query_norm: normalises the queries of a head, with the scale; None where nothing does.
        key_norm: normalises the keys of a head.
        mixed_norm: normalises what `proj` reads, all heads side by side.
        gate: of the tokens, its sigmoid multiplies what `proj` reads, after that norm.
    """

    qkv: Tensor
    query_bias: Tensor | None
    value_bias: Tensor | None
    proj: nn.Linear
    key_bias: Tensor | None = None
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None
    mixed_norm: nn.Module | None = None
    gate: nn.Linear | None = None


def fold_attention(
    attention: nn.Module,
    gain: Tensor | float,
    *,
    keep_value_bias: bool = False,
    rotated: Literal["halves", "neighbours"] | None = None,
) -> FoldedAttention:
    """Fold an attention's scale into its queries, and what can be of its biases into one.

    A key's bias adds the same number to all logits of a query, q·b: the softmax takes it away again. The weights that
    values are averaged with add up to 1, so their bias is one of the average, and goes through `proj` into its bias.
    Neither is so before a norm or a gate, nor where positions turn the keys: the biases of normalised or turned keys, and
    of values whose average is normalised or gated, stay.

    Args:
        attention: a SiT's or timm's.
        gain: what the block multiplies its result by.
        keep_value_bias: leave the values' bias with them. What `proj` reads is then what it was trained on, as the thresholds
            of a model that was trained in 8 bits want it.
        rotated: which channels of queries and keys rotary positions turn together. Neighbours are moved half a head apart,
            as the deploy form turns halves: both sides of every product of queries and keys are moved, so it stays.
    """
    heads = attention.num_heads
    weight, bias = _qkv(attention)
    dim = weight.shape[0] // 3
    scale = (dim // heads) ** -0.5
    query_norm, key_norm, mixed_norm = (kept_norm(attention, name) for name in ("q_norm", "k_norm", "norm"))
    gate = getattr(attention, "gate", None)
    if query_norm is None:
        weight[:dim] *= scale
        if bias is not None:
            bias[:dim] *= scale
    else:
        query_norm = scaled_norm(query_norm, scale)
    if rotated == "neighbours":  # put the first of all pairs before the second, for queries and keys alike
        order = torch.arange(dim // heads).view(-1, 2).T.flatten()
        rows = (torch.arange(2 * heads).view(-1, 1) * (dim // heads) + order).flatten()
        weight[: 2 * dim] = weight[rows]
        if bias is not None:
            bias[: 2 * dim] = bias[rows]
        query_norm, key_norm = (_ordered_norm(norm, order) for norm in (query_norm, key_norm))
    kept = {"query_norm": query_norm, "key_norm": key_norm, "mixed_norm": mixed_norm, "gate": gate}
    if bias is None:
        return FoldedAttention(weight, None, None, fold_gain(attention.proj, gain), **kept)
    query, key, value = bias.chunk(3)
    by_head = (heads, 1, dim // heads)
    query_bias = query.reshape(by_head).float()
    if key_norm is not None or (rotated and key.any()):
        kept["key_bias"] = key.reshape(by_head).float()
    if keep_value_bias or mixed_norm is not None or gate is not None:
        value_bias = value.reshape(by_head).float()
        return FoldedAttention(weight, query_bias, value_bias, fold_gain(attention.proj, gain), **kept)
    return FoldedAttention(weight, query_bias, None, fold_value_bias(attention.proj, value, gain), **kept)


def fold_value_bias(proj: nn.Linear, value: Tensor, gain: Tensor | float) -> nn.Linear:
    """Return a Linear that equals `gain * proj(x + value)`: the bias (dim,) of values whose average `proj` reads, and a gain as `fold_gain`'s."""
    rows = torch.as_tensor(gain, dtype=torch.float64).reshape(-1, 1)
    weight, own = proj.weight.double(), _double(proj.bias)
    bias = weight @ value + (0 if own is None else own)
    return make_linear(weight * rows, bias * rows[:, 0])


def _qkv(attention: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight (3·dim, tokens' width) and the bias (3·dim,) of queries, keys and values, in whichever parts a model has them.

    Where several heads of queries share one of keys and values, each is given a copy of its own.
    """
    if attention.qkv is not None:
        weight, bias = attention.qkv.weight.double().clone(), _double(attention.qkv.bias)
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]).double()
        return weight, None if bias is None else bias.clone()
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    width = attention.q_proj.out_features // attention.num_heads

    def copies(rows: Tensor) -> Tensor:
        by_head = rows.unflatten(0, (-1, width))
        return by_head.repeat_interleave(attention.num_heads // by_head.shape[0], dim=0).flatten(0, 1)

    weight = torch.cat([copies(layer.weight.double()) for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = (
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
    )
    return weight, torch.cat([copies(bias.double()) for bias in biases])


def _ordered_norm(norm: nn.Module | None, order: Tensor) -> nn.Module | None:
    """Return a norm whose channels come in another order."""
    if norm is None:
        return None
    ordered = copy.deepcopy(norm)
    for name in ("weight", "bias"):
        if getattr(norm, name, None) is not None:
            getattr(ordered, name).data = getattr(norm, name)[order]
    return ordered


def kept_norm(module: nn.Module, name: str) -> nn.Module | None:
    """Return the deploy form of a module's norm, None where it has none: an Identity is not worth a module."""
    norm = getattr(module, name, None)
    return None if norm is None or isinstance(norm, nn.Identity) else deploy_norm(norm)


def fold_tsm_scale(tsm: TokenSlimming) -> nn.Linear:
    """Return the TSM's last Linear multiplied by its learned scalar, without its bias.

    The softmax runs over the input tokens, to all of which the bias adds the same: it changes nothing.
    """
    return make_linear(tsm.weight[3].weight.double() * tsm.scale.double().flatten(), None)


def position_table(model: AnyModel) -> Tensor:
    """Return what is added to the zero-padded patch tokens, (1, prefix + patches, dim): prefix tokens and positions."""
    names = ("cls_token", "dist_token", "reg_token")
    prefix = [t.double() for t in (getattr(model, name, None) for name in names) if t is not None]
    position = _double(model.pos_embed)
    if position is None:  # rotary positions alone
        patches = model.grid_size[0] * model.grid_size[1]
        position = torch.zeros(1, patches, model.embed_dim, dtype=torch.float64)
        return torch.cat((*prefix, position), dim=1).float()
    if hasattr(model, "dist_pos_embed"):
        position = torch.cat((position[:, :1], model.dist_pos_embed.double(), position[:, 1:]), dim=1)
    prefix = torch.cat([position[:, :0], *prefix], dim=1)
    if getattr(model, "no_embed_class", False):  # the prefix has no positions
        return torch.cat((prefix, position), dim=1).float()
    n = prefix.shape[1]
    return torch.cat((prefix + position[:, :n], position[:, n:]), dim=1).float()


def merged_head(model: AnyModel) -> nn.Linear:
    """Return one Linear over the concatenated tokens that are read: the head, or the mean of head and dist head."""
    if not model.has_dist_token:
        return make_linear(model.head.weight.double(), _double(model.head.bias))
    heads = (model.head, model.head_dist)
    weight = torch.cat([h.weight.double() / 2 for h in heads], dim=1)
    return make_linear(weight, sum(h.bias.double() / 2 for h in heads))


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()
