"""The deploy form of token reduction without training: what is read off the next block's attention, and what is made of it.

Queries and keys come from weights folded as those of the block itself. What decides which tokens are merged is one module of the graph,
`reduction.N/assign`, and stays FP32 in every precision (`graph.patterns.selections`): it sorts by TopK, and two scores that are
nearly equal must not change places because they were rounded. What queries and keys are computed of is rounded all the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sit_deploy.graph.deploy_block import Turn, split_heads, turned
from sit_deploy.graph.deploy_norm import deploy_norm
from sit_deploy.graph.folding import fold_attention, make_linear
from sit_deploy.models.evidence import normalises_behind
from sit_deploy.models.token_reduction import Evidence, TokenReduction, size_bias


class _Assign(nn.Module):
    """Queries (B, heads, asking, width), scaled, and keys (B, heads, prefix + N, width) → assignment (B, kept, N) and sizes (B, kept)."""

    def __init__(self, reduction: TokenReduction, prefix: int) -> None:
        super().__init__()
        self.reduction, self.prefix = reduction, prefix

    def forward(self, q: Tensor | None, k: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        n = self.prefix
        importance = None
        if q is not None:
            logits = q @ k.transpose(-2, -1)
            logits = logits if sizes is None else logits + size_bias(sizes, n)
            importance = logits.softmax(dim=-1).mean(dim=(1, 2))[:, n:]
        keys = k.transpose(1, 2).flatten(2)[:, n:]
        shares = self.reduction.shares(Evidence(keys, importance), sizes)
        weights = shares if sizes is None else shares * sizes.unsqueeze(1)
        total = weights.sum(dim=-1)
        return weights / total.unsqueeze(-1), total


class DeployReduction(nn.Module):
    """Merges the patch tokens in front of a block: (B, prefix + N, dim) → (B, prefix + kept, dim).

    Args:
        reduction: how.
        block: the next one, a SiT's or one of timm's that `models.timm_vit.why_not_rewritten` finds nothing in.
        prefix: how many tokens are no patches.
        class_token: whether the first is a class token, whose attention is asked for; without one, that of all tokens.
        folding: see `folding.fold_attention`.
    """

    def __init__(
        self, reduction: TokenReduction, block: nn.Module, prefix: int, class_token: bool, **folding: Any
    ) -> None:
        super().__init__()
        self.prefix, self.num_heads = prefix, block.attn.num_heads
        folded = fold_attention(block.attn, 1.0, **folding)
        dim = folded.qkv.shape[0] // 3
        self.norm = None if normalises_behind(block) else deploy_norm(block.norm1)
        self.asking = (1 if class_token else None) if reduction.selects else 0
        if reduction.selects:
            self.q = make_linear(folded.qkv[:dim], None)
            self.register_buffer("query_bias", folded.query_bias)
            self.query_norm = folded.query_norm
        self.k = make_linear(folded.qkv[dim : 2 * dim], None)
        self.register_buffer("key_bias", folded.key_bias)
        self.key_norm = folded.key_norm
        self.assign = _Assign(reduction, prefix)

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, turn: Turn | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens, the sizes (B, kept) of those of the patches, and the assignment (B, kept, N) that made these."""
        read = self.norm(x) if self.norm else x
        q = None
        if self.asking != 0:
            q = split_heads(self.q(read[:, : self.asking] if self.asking else read), self.num_heads)
            q = q if self.query_bias is None else q + self.query_bias
            q = self.query_norm(q) if self.query_norm else q
            # a class token has no place, and is not turned
            q = q if turn is None or self.asking else turned(q, turn)
        k = split_heads(self.k(read), self.num_heads)
        k = k if self.key_bias is None else k + self.key_bias
        k = self.key_norm(k) if self.key_norm else k
        k = k if turn is None else turned(k, turn)
        assignment, sizes = self.assign(q, k, sizes)
        n = self.prefix
        slimmed = assignment @ (x[:, n:] if n else x)
        return torch.cat((x[:, :n], slimmed), dim=1) if n else slimmed, sizes, assignment
