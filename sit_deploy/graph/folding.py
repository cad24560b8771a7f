"""Folding one layer into the next, exactly: in float64, rounded to float32 once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.layers import LayerScale
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from sit_deploy.models.sit import Block, SiT
from sit_deploy.models.slim import SlimViT
from sit_deploy.models.tsm import TokenSlimming

AnyModel = SiT | SlimViT


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


def residual_gains(block: Block | TimmBlock) -> tuple[Tensor | float, Tensor | float]:
    """Return what a block multiplies the results of its attention and of its MLP by: 1 / skip_lam, or LayerScale."""
    if isinstance(block, Block):
        return 1 / block.skip_lam, 1 / block.skip_lam
    first, second = (
        scale.gamma.double() if isinstance(scale, LayerScale) else 1.0 for scale in (block.ls1, block.ls2)
    )
    return first, second


@dataclass(frozen=True)
class FoldedAttention:
    """The weights of an attention, its scale and the residual gain folded in.

    Attributes:
        qkv: queries, keys and values of tokens, (3·dim, dim), without a bias.
        query_bias: what is added to the queries, (heads, 1, dim / heads); None where they have no bias.
        value_bias: what is added to the values, alike; None where `proj` has taken it, or there is none.
        proj: of the averaged values, with the gain.
        key_bias: what is added to the keys, like that of queries; None but before a norm.
        query_norm: normalises the queries of a head, with the scale; None where nothing does.
        key_norm: normalises the keys of a head.
        mixed_norm: normalises what `proj` reads, all heads side by side.
    """

    qkv: Tensor
    query_bias: Tensor | None
    value_bias: Tensor | None
    proj: nn.Linear
    key_bias: Tensor | None = None
    query_norm: nn.LayerNorm | None = None
    key_norm: nn.LayerNorm | None = None
    mixed_norm: nn.LayerNorm | None = None


def fold_attention(
    attention: nn.Module, gain: Tensor | float, *, keep_value_bias: bool = False
) -> FoldedAttention:
    """Fold an attention's scale into its queries, and what can be of its biases into one.

    A key's bias adds the same number to all logits of a query, q·b: the softmax takes it away again. The weights that
    values are averaged with add up to 1, so their bias is one of the average, and goes through `proj` into its bias.
    Neither is so before a norm: the biases of normalised keys, and of values whose average is normalised, stay.

    Args:
        attention: a SiT's or timm's, ungated.
        gain: what the block multiplies its result by.
        keep_value_bias: leave the values' bias with them. What `proj` reads is then what it was trained on, as the thresholds
            of a model that was trained in 8 bits want it.
    """
    heads, dim = attention.num_heads, attention.qkv.in_features
    scale = (dim // heads) ** -0.5
    query_norm, key_norm, mixed_norm = (kept_norm(attention, name) for name in ("q_norm", "k_norm", "norm"))
    weight = attention.qkv.weight.double().clone()
    if query_norm is None:
        weight[:dim] *= scale
    else:
        query_norm = _scaled_norm(query_norm, scale)
    norms = {"query_norm": query_norm, "key_norm": key_norm, "mixed_norm": mixed_norm}
    if attention.qkv.bias is None:
        return FoldedAttention(weight, None, None, fold_gain(attention.proj, gain), **norms)
    query, key, value = attention.qkv.bias.double().chunk(3)
    by_head = (heads, 1, dim // heads)
    query_bias = (query * (scale if query_norm is None else 1)).reshape(by_head).float()
    if key_norm is not None:
        norms["key_bias"] = key.reshape(by_head).float()
    if keep_value_bias or mixed_norm is not None:
        value_bias = value.reshape(by_head).float()
        return FoldedAttention(weight, query_bias, value_bias, fold_gain(attention.proj, gain), **norms)
    rows = torch.as_tensor(gain, dtype=torch.float64).reshape(-1, 1)
    proj, own = attention.proj.weight.double(), _double(attention.proj.bias)
    bias = proj @ value + (0 if own is None else own)
    return FoldedAttention(weight, query_bias, None, make_linear(proj * rows, bias * rows[:, 0]), **norms)


def kept_norm(module: nn.Module, name: str) -> nn.Module | None:
    """Return a normalisation of a module, None where it has none: an Identity is not worth a module."""
    norm = getattr(module, name, None)
    return None if isinstance(norm, nn.Identity) else norm


def _scaled_norm(norm: nn.LayerNorm, scale: float) -> nn.LayerNorm:
    """Return a LayerNorm that equals `scale * norm(x)`."""
    scaled = copy.deepcopy(norm)
    scaled.weight.data = (norm.weight.double() * scale).float()
    if norm.bias is not None:
        scaled.bias.data = (norm.bias.double() * scale).float()
    return scaled


def fold_tsm_scale(tsm: TokenSlimming) -> nn.Linear:
    """Return the TSM's last Linear multiplied by its learned scalar, without its bias.

    The softmax runs over the input tokens, to all of which the bias adds the same: it changes nothing.
    """
    return make_linear(tsm.weight[3].weight.double() * tsm.scale.double().flatten(), None)


def position_table(model: AnyModel) -> Tensor:
    """Return what is added to the zero-padded patch tokens, (1, prefix + patches, dim): prefix tokens and positions."""
    position = model.pos_embed.double()
    tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = torch.cat([position[:, :0], *(t.double() for t in tokens if t is not None)], dim=1)
    if hasattr(model, "dist_pos_embed"):
        position = torch.cat((position[:, :1], model.dist_pos_embed.double(), position[:, 1:]), dim=1)
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
