"""How the head reads many tokens: their mean, their largest values, or attention of a query that is learned.

That query is the same for every image, so its products with the keys' weights are weights themselves: one layer gives the logits of
all tokens, and no key is computed. Tokens are averaged before they become values, which is the same and costs one token in place of all.
"""

from __future__ import annotations

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from sit_deploy.graph.deploy_block import deploy_mlp
from sit_deploy.graph.folding import fold_value_bias, kept_norm, make_linear


class DeployAttentionPool(nn.Module):
    """timm's AttentionPoolLatent (`models.timm_vit` lets through which): tokens (B, N, dim) → (B, dim)."""

    def __init__(self, pool: AttentionPoolLatent) -> None:
        super().__init__()
        heads, width = pool.num_heads, pool.head_dim
        self.latents, self.average = pool.latent_len, pool.pool == "avg"
        query = pool.q_norm(pool.q(pool.latent[0]).unflatten(-1, (heads, width)))
        query = query.double() * pool.scale  # (latents, heads, width)
        keys, values = pool.kv.weight.double().chunk(2)
        keys, values = (rows.unflatten(0, (heads, width)) for rows in (keys, values))  # (heads, width, dim)
        # the keys' bias adds the same to all logits of a query: the softmax takes it away
        logits = torch.einsum("lhw,hwd->hld", query, keys)
        self.scores = make_linear(logits.flatten(0, 1), None)
        # (1, heads, dim, width)
        self.register_buffer("values", values.transpose(1, 2).float()[None].contiguous())
        if pool.kv.bias is None:
            self.proj = pool.proj
        else:
            self.proj = fold_value_bias(pool.proj, pool.kv.bias.double().chunk(2)[1], 1.0)
        self.norm = kept_norm(pool, "norm")
        self.mlp = None if pool.mlp is None else deploy_mlp(pool.mlp, 1.0)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Pool tokens; each counts as often as `sizes` (B, N) says, once by default."""
        logits = self.scores(x).transpose(1, 2)
        logits = logits if sizes is None else logits + sizes.log().unsqueeze(1)
        weights = logits.softmax(dim=-1)  # (B, heads · latents, N)
        mixed = (weights @ x).reshape(x.shape[0], -1, self.latents, x.shape[-1])
        read = (mixed @ self.values).transpose(1, 2).reshape(x.shape[0], self.latents, -1)
        read = self.proj(read)
        if self.mlp is not None:
            read = read + self.mlp(self.norm(read) if self.norm else read)
        if self.latents == 1:
            return read.flatten(1)
        return read.mean(dim=1) if self.average else read[:, 0]
