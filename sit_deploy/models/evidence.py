"""What a block's attention says of the tokens it is given, computed beside the block: keys, and who is attended to.

Tokens are merged in front of a block, by what that block will see of them. (By what the block before saw, its result is further off:
docs/slimming.md.) A block is one of ours or of timm's, and computes its attention in one fused operator that shows neither; queries and keys are made
again here. The keys' bias is left out where it means nothing: without a norm or rotary positions behind it, it adds the same to all
logits of a query, so that nothing was ever learned in it, and the deploy form has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from sit_deploy.models.token_reduction import Evidence


def evidence(
    block: nn.Module,
    x: Tensor,
    prefix: int,
    class_token: bool | None,
    rope: Tensor | None = None,
    bias: Tensor | None = None,
) -> Evidence:
    """Return what the attention of a block says of its patch tokens.

    Args:
        block: of a SiT, or one of timm's that `models.timm_vit.why_not_rewritten` finds nothing in.
        x: tokens (B, prefix + N, dim) that the block is given.
        prefix: how many of them are no patches.
        class_token: whether the first is a class token; None where nobody asks for the importance of tokens.
        rope: the block's rotary positions, as timm's blocks take them.
        bias: added to the logits of attention, (B, 1, 1, prefix + N).
    """
    read = x if normalises_behind(block) else block.norm1(x)
    q, k = queries_and_keys(block.attn, read, prefix, rope)
    keys = k.float().transpose(1, 2).flatten(2)[:, prefix:]
    if class_token is None:
        return Evidence(keys, None)
    q = q[:, :, :1] if class_token else q
    with torch.autocast(x.device.type, enabled=False):
        logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return Evidence(keys, weights.mean(dim=(1, 2))[:, prefix:])


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token of a model is a class token."""
    return getattr(model, "cls_token", None) is not None


def normalises_behind(block: nn.Module) -> bool:
    """Whether the norms of a block are behind its attention and its MLP, not before them."""
    return isinstance(block, (ResPostBlock, EvaBlockPostNorm))


def queries_and_keys(
    attention: nn.Module, x: Tensor, prefix: int, rope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the queries and keys (B, heads, N, width) of tokens (B, N, dim), before the scale."""
    heads, (batch, count, _) = attention.num_heads, x.shape
    q_norm, k_norm = (getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm"))
    if attention.qkv is not None:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        weights, biases = attention.qkv.weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3)
    else:
        layers = (attention.q_proj, attention.k_proj)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    keeps_bias = rope is not None or not isinstance(k_norm, nn.Identity)
    made = [F.linear(x, weights[0], biases[0]), F.linear(x, weights[1], biases[1] if keeps_bias else None)]
    width = weights[0].shape[0] // heads
    q, k = (t.reshape(batch, count, -1, width).transpose(1, 2) for t in made)
    q, k = q_norm(q), k_norm(k)
    if rope is not None:
        half = getattr(attention, "rotate_half", False)
        q, k = (
            torch.cat((t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope, half=half)), dim=2)
            for t in (q, k)
        )
    return q, k.repeat_interleave(heads // k.shape[1], dim=1)
