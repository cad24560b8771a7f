"""LV-ViT and its self-slimmed form SiT, as plain PyTorch modules registered with timm.

Sources: "All Tokens Matter" (LV-ViT, arXiv 2104.10858) and "Self-slimmed Vision Transformer" (SiT, arXiv 2111.12624).
Parameter names are those of the official checkpoints. A teacher is a SiT of one stage: nothing slims.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple, trunc_normal_
from torch import Tensor, nn

from sit_deploy.methods import TSM
from sit_deploy.models.config import PATCH, STEMS, check_image_sides, token_schedule
from sit_deploy.models.forward import SlimmingForward
from sit_deploy.models.token_reduction import reductions
from sit_deploy.models.tsm import Mlp, TokenSlimming, init_linears, reverse_tsms, slim_after


class ConvStem(nn.Module):
    """3×3 convolutions, each with BatchNorm, GELU between them: (B, C, H, W) → (B, dim, H/16, W/16).

    `4c` has strides 2,2,2,2; `6c` (SiT-L) has strides 2,1,1,2,2,2.
    """

    def __init__(self, in_chans: int, dim: int, layout: str) -> None:
        super().__init__()
        self.depth = len(STEMS[layout])
        self.gelu = nn.GELU()
        channels = in_chans
        for i, (divisor, stride) in enumerate(STEMS[layout], 1):
            conv = nn.Conv2d(channels, dim // divisor, 3, stride=stride, padding=1, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(dim // divisor))
            channels = dim // divisor

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Return the (convolution, normalisation) pairs in order."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.depth + 1)]

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, bn) in enumerate(self.layers(), 1):
            x = bn(conv(x))
            if i < self.depth:
                x = self.gelu(x)
        return x


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, dim) → (B, N, dim). `attn_mask` is added to its logits, (B, 1, 1, N)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Pre-norm transformer block whose residual branches are divided by `skip_lam` (LV-ViT, section 3.3)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, skip_lam: float, drop_path: float) -> None:
        super().__init__()
        self.skip_lam = skip_lam
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), attn_mask)) / self.skip_lam
        return x + self.drop_path(self.mlp(self.norm2(x))) / self.skip_lam


class SiT(SlimmingForward):
    """Self-slimmed Vision Transformer; with one stage, the unslimmed LV-ViT.

    forward: images (B, in_chans, H, W) float → logits (B, num_classes); with a dist token, the mean of both heads.

    The constructor takes what timm's do, and the paper's own numbers: more than seven arguments.

    Args:
        img_size: height and width in pixels, each divisible by 16.
        num_classes: 0 gives the features of the class token instead of logits.
        stage_blocks: blocks a stage; after the last block of every stage but the final one a TSM merges tokens.
        keeping_ratio: share of the patch tokens that each further stage keeps.
        kept: patch tokens of every stage, in place of those that `keeping_ratio` gives (a checkpoint trained at
            another image size has its own).
        dist_token: add the distillation token of a CNN teacher and its head.
        reverse_tsm: make the reverse TSMs that FRD trains with; never needed for inference.
        method: how tokens are merged: by a TSM, which learns it, or without training (`models.token_reduction`).

    Raises:
        InputError: an image size that 16 does not divide, or a schedule that leaves no token or grows.
    """

    def __init__(  # noqa: PLR0913
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        num_heads: int = 6,
        stage_blocks: tuple[int, ...] = (16,),
        mlp_ratio: float = 3.0,
        stem: str = "4c",
        skip_lam: float = 2.0,
        keeping_ratio: float = 0.5,
        kept: tuple[int, ...] | None = None,
        drop_path_rate: float = 0.0,
        dist_token: bool = False,
        reverse_tsm: bool = False,
        method: str = TSM,
    ) -> None:
        super().__init__()
        height, width = to_2tuple(img_size)
        check_image_sides((height, width), PATCH)
        self.img_size = (height, width)
        self.grid_size = (height // PATCH, width // PATCH)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.stage_blocks = tuple(stage_blocks)
        self.depth = sum(self.stage_blocks)
        self.grad_checkpointing = False
        patches = self.grid_size[0] * self.grid_size[1]
        self.kept = token_schedule(patches, self.stage_blocks, keeping_ratio, kept)

        self.patch_embed = ConvStem(in_chans, embed_dim, stem)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, embed_dim))
        if dist_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.dist_pos_embed = nn.Parameter(torch.zeros(1, 1, embed_dim))
        # in plain Python, so that a model can be made on the meta device
        drop_rates = [drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, skip_lam, drop_rates[i]) for i in range(self.depth)
        )
        self.slim_after = slim_after(self.stage_blocks)
        if self.slim_after and method == TSM:
            self.tsm = nn.ModuleList(TokenSlimming(embed_dim, n) for n in self.kept[1:])
        elif self.slim_after:
            self.reduction = reductions(method, self.kept)
        if reverse_tsm:
            self.rtsm = reverse_tsms(embed_dim, self.stage_blocks, self.kept)
        self.norm = nn.LayerNorm(embed_dim)
        self._make_heads(dist_token)
        self._init_weights()

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that are never slimmed: the class token and, where there is one, the dist token."""
        return 2 if self.has_dist_token else 1

    @property
    def has_dist_token(self) -> bool:
        return hasattr(self, "dist_token")

    def _make_heads(self, dist_token: bool) -> None:
        def head() -> nn.Module:
            return nn.Linear(self.embed_dim, self.num_classes) if self.num_classes else nn.Identity()

        self.head = head()
        # LV-ViT's token-labelling head: unused, frozen, kept so that official checkpoints load strictly
        self.aux_head = head().requires_grad_(False)
        if dist_token:
            self.head_dist = head()

    def _init_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("_token", "pos_embed")):
                trunc_normal_(parameter, std=0.02)
        init_linears(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "dist_token", "dist_pos_embed"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        stem = r"^cls_token|^dist_token|pos_embed|^patch_embed"
        return {"stem": stem, "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace every head (class, aux and dist) by a new one of `num_classes` outputs."""
        self.num_classes = num_classes
        self._make_heads(self.has_dist_token)
        for head in (self.head, self.aux_head, getattr(self, "head_dist", None)):
            if isinstance(head, nn.Linear):
                trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
                head.to(self.cls_token)  # its device and type

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        prefix, pos = self.cls_token, self.pos_embed
        if self.has_dist_token:
            prefix = torch.cat((prefix, self.dist_token), dim=1)
            pos = torch.cat((pos[:, :1], self.dist_pos_embed, pos[:, 1:]), dim=1)
        return torch.cat((prefix.expand(x.shape[0], -1, -1), x), dim=1) + pos

    def forward_head(self, x: Tensor, pre_logits: bool = False, sizes: Tensor | None = None) -> Tensor:
        """Normalised tokens → logits (B, num_classes), or the features before it: the class token, or its mean with the dist token.

        Those of the patches are not read, and so neither are their `sizes`.
        """
        if pre_logits:
            return (x[:, 0] + x[:, 1]) / 2 if self.has_dist_token else x[:, 0]
        logits, dist_logits = self._heads(x)
        return logits if dist_logits is None else (logits + dist_logits) / 2

    def _heads(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        dist_logits = self.head_dist(x[:, 1]) if self.has_dist_token else None
        return self.head(x[:, 0]), dist_logits
