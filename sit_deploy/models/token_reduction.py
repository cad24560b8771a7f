"""Token reduction without training: which tokens are merged is read off the attention behind it, and nothing is learned.

Two methods, as pure functions of tensors and one small module:

- "transform": the tokens that matter most are kept, and every token spreads itself over them by the likeness of keys. That a
  reduction is one matrix of shares, many tokens to many, and that it needs no training, is the idea of "Token Transforming",
  arXiv 2506.05709. What is particular here: a softmax of τ · cosine over the *kept* tokens, so that no token is lost, with τ = 40.
- "merge": bipartite soft matching of "Token Merging" (ToMe), arXiv 2210.09461. Every second token looks for the most similar one
  of the others; the most similar pairs become one token each. That at most halves them; where a schedule asks for more, the
  merged tokens are matched again.

Both make `shares`, (B, kept, N), whose columns add up to 1: how much of each token goes into each that is made. A token that is made
is the mean of what goes into it, weighted by sizes, and its own size is their sum: the number of patches that it stands for. Attention
counts it that often, by the logarithm of its size added to the logits of its key ("proportional attention" of ToMe).

All shapes are static, and the operators are those that every engine has: sorting by TopK, and rows picked by a product with ones and
zeros in place of a gather by computed indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.methods import MERGE, TRANSFORM

TEMPERATURE = 40.0  # τ: of a cosine that is 0.1 lower, a share 55 times smaller
_TINY = 1e-12  # keeps a key of zeros from dividing by zero


@dataclass(frozen=True)
class Evidence:
    """What the attention of the next block says of the patch tokens that it would be given.

    Attributes:
        keys: (B, N, width), those of all heads side by side.
        importance: (B, N), the attention that a token gets from the class token, mean over heads; without one, from all tokens. None
            where nothing asks for it.
    """

    keys: Tensor
    importance: Tensor | None


def one_hot(index: Tensor, count: int) -> Tensor:
    """Return rows of zeros with a one each, float32 (B, rows, count), at the places `index` (B, rows)."""
    places = torch.arange(count, dtype=torch.float32, device=index.device)
    return (index.float().unsqueeze(-1) == places).float()


def normalised(keys: Tensor) -> Tensor:
    """Return vectors (..., width) of length 1, float32."""
    keys = keys.float()
    return keys / (keys * keys).sum(dim=-1, keepdim=True).add(_TINY).sqrt()


def transform_shares(keys: Tensor, importance: Tensor, kept: int, temperature: float = TEMPERATURE) -> Tensor:
    """Return the shares (B, kept, N) of token transformation: the `kept` most important tokens, over which all spread themselves.

    Args:
        keys: (B, N, width).
        importance: (B, N).
        kept: how many are made, at most N. They come in the order of their importance.
        temperature: τ; the larger, the more of a token goes to the one that it is most like.
    """
    unit = normalised(keys)
    chosen = one_hot(importance.float().topk(kept, dim=1).indices, keys.shape[1]) @ unit
    # over the last axis, where every engine computes a softmax fastest
    return (temperature * unit @ chosen.transpose(1, 2)).softmax(dim=-1).transpose(1, 2)


def merge_shares(keys: Tensor, kept: int, sizes: Tensor | None = None) -> Tensor:
    """Return the shares (B, kept, N), ones and zeros, of bipartite soft matching, repeated until `kept` tokens are left.

    Args:
        keys: (B, N, width).
        kept: how many are made, at most N.
        sizes: (B, N), by which keys are averaged before they are matched again; one each by default.
    """
    step = shares = matching_shares(keys, max(kept, keys.shape[1] // 2))
    while shares.shape[1] > kept:
        keys, sizes, _ = merged(step, keys, sizes)
        step = matching_shares(keys, max(kept, keys.shape[1] // 2))
        shares = step @ shares
    return shares


def matching_shares(keys: Tensor, kept: int) -> Tensor:
    """Return the shares (B, kept, N) of one matching: tokens of even number that stay, then those of odd number with what joins them.

    Args:
        keys: (B, N, width), N of 2 or more unless all are kept.
        kept: how many are made, N // 2 at least.
    """
    count = keys.shape[1]
    even, odd = (count + 1) // 2, count // 2
    unit = normalised(keys)
    nearest = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).topk(1, dim=-1)
    joins = one_hot(nearest.indices.squeeze(-1), odd).transpose(1, 2)  # (B, odd, even)
    stays = kept - odd
    if stays:
        least = nearest.values.squeeze(-1).topk(stays, dim=1, largest=False).indices
        alone = one_hot(least, even)  # (B, stays, even)
        joins = torch.cat((alone, joins * (1 - alone.sum(dim=1, keepdim=True))), dim=1)
    # those of odd number stay where they are: rows of zeros, then ones on a diagonal
    own = torch.cat((torch.zeros(stays, odd), torch.eye(odd))).to(keys.device)
    both = F.pad(joins, (0, odd)) + F.pad(own, (even, 0))
    places = torch.arange(count, device=keys.device)
    return both.index_select(2, torch.where(places % 2 == 0, places // 2, even + places // 2))


def merged(shares: Tensor, tokens: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means (B, kept, dim) of tokens (B, N, dim) by shares and sizes, their sizes (B, kept), and the assignment (B, kept, N).

    The rows of the assignment, by which the means are made, add up to 1, as those of a TSM's.
    """
    weights = shares if sizes is None else shares * sizes.unsqueeze(1)
    total = weights.sum(dim=-1)
    assignment = weights / total.unsqueeze(-1)
    return assignment.to(tokens.dtype) @ tokens, total, assignment


def size_bias(sizes: Tensor, prefix: int) -> Tensor:
    """Return what is added to attention's logits, (B, 1, 1, prefix + N), for tokens of `sizes` (B, N) behind `prefix` of size 1."""
    return F.pad(sizes.log(), (prefix, 0)).unsqueeze(1).unsqueeze(1)


class TokenReduction(nn.Module):
    """Merges tokens by one of the two methods: (B, N, dim) → (B, kept, dim). It has no weights.

    Args:
        method: "transform" or "merge".
        kept: how many tokens are made; where there are no more, they stay as they are.
    """

    def __init__(self, method: str, kept: int) -> None:
        super().__init__()
        self.method, self.kept = method, kept

    @property
    def selects(self) -> bool:
        """Whether it asks for the importance of tokens."""
        return self.method == TRANSFORM

    def extra_repr(self) -> str:
        return f"method={self.method!r}, kept={self.kept}"

    def shares(self, evidence: Evidence, sizes: Tensor | None) -> Tensor:
        """Return the shares (B, kept, N) of tokens with this evidence and these sizes (B, N)."""
        if self.method == MERGE:
            return merge_shares(evidence.keys, self.kept, sizes)
        return transform_shares(evidence.keys, evidence.importance, self.kept)

    def forward(
        self, tokens: Tensor, evidence: Evidence, sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the merged tokens, their sizes (B, kept), and the assignment (B, kept, N) that made them."""
        return merged(self.shares(evidence, sizes), tokens, sizes)


def reductions(method: str, kept: tuple[int, ...]) -> nn.ModuleList:
    """Return a reduction for every stage of `kept` tokens but the first."""
    return nn.ModuleList(TokenReduction(method, count) for count in kept[1:])


def pool_by_size(model: nn.Module, x: Tensor, sizes: Tensor) -> Tensor:
    """Return what a timm model pools of its tokens (B, prefix + N, dim), each counted by its size (B, N): (B, dim).

    The model pools them all ("avg", "max", "avgmax") or has a module of attention that does.
    """
    n = model.num_prefix_tokens
    # timm's Eva, which has no such switch, has all tokens pooled by attention and the patches alone otherwise
    whole = getattr(model, "pool_include_prefix", model.attn_pool is not None)
    read, counted = (x, F.pad(sizes, (n, 0), value=1.0)) if whole else (x[:, n:], sizes)
    if model.attn_pool is not None:
        return model.attn_pool(read, attn_mask=size_bias(counted, 0).to(x.dtype))
    return pool_tokens(read, model.global_pool, counted)


def pool_tokens(tokens: Tensor, kind: str, sizes: Tensor | None = None) -> Tensor:
    """Return the "avg", "max" or "avgmax" of tokens (B, N, dim), averaged by `sizes` (B, N) where these are given: (B, dim)."""
    largest = None if kind == "avg" else tokens.amax(dim=1)
    if kind == "max":
        return largest
    if sizes is None:
        mean = tokens.mean(dim=1)
    else:
        share = (sizes / sizes.sum(dim=1, keepdim=True)).to(tokens.dtype)
        mean = (share.unsqueeze(1) @ tokens).squeeze(1)
    return mean if largest is None else 0.5 * (largest + mean)
