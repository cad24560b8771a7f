"""Token slimming (TSM) and its inverse (reverse TSM) of "Self-slimmed Vision Transformer", arXiv 2111.12624.

Parameter names are those of the official checkpoints, so that these load as they are.
"""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn


def slim_after(stage_blocks: tuple[int, ...]) -> dict[int, int]:
    """Return block index → index of the TSM that acts after it: the last block of every stage but the final one."""
    return {sum(stage_blocks[: i + 1]) - 1: i for i in range(len(stage_blocks) - 1)}


def init_linears(module: nn.Module) -> None:
    """Draw the weights of every Linear from a truncated normal of 0.02, and zero their biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Mlp(nn.Module):
    """Linear → GELU → Linear over the last axis: (..., dim_in) → (..., dim_out)."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TokenSlimming(nn.Module):
    """Softly merges tokens: (B, N, dim) → (B, kept, dim), each output a convex combination of all N inputs (eq. 3).

    The assignment is a softmax over the *input* tokens, so N may vary while `kept` is fixed by the last Linear.
    """

    def __init__(self, dim: int, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.weight = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, kept)
        )
        self.scale = nn.Parameter(torch.ones(1, 1, 1))

    def assignment(self, x: Tensor) -> Tensor:
        """Return the soft assignment (B, kept, N) of tokens `x` (B, N, dim); every row sums to one."""
        return torch.softmax(self.weight(x) * self.scale, dim=1).transpose(1, 2)

    def forward(self, x: Tensor, with_assignment: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the slimmed tokens; where it is asked for, with the assignment (B, kept, N) that made them."""
        assignment = self.assignment(x)
        slimmed = assignment @ x
        return (slimmed, assignment) if with_assignment else slimmed


class ReverseTokenSlimming(nn.Module):
    """Recovers tokens for distillation: (B, kept, dim) → (B, patches, dim) (eq. 5). Exists in training only."""

    def __init__(self, dim: int, kept: int, patches: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mlp1 = Mlp(kept, patches * ratio, patches)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp2 = Mlp(dim, dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp1(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp2(self.norm2(x))


def reverse_tsms(dim: int, stage_blocks: tuple[int, ...], kept: tuple[int, ...]) -> nn.ModuleList:
    """Make one reverse TSM a block, Identity for the blocks before the first slimming, where nothing is to recover."""
    slimmed_after = slim_after(stage_blocks)
    modules: list[nn.Module] = []
    for block in range(sum(stage_blocks)):
        times = sum(after <= block for after in slimmed_after)
        modules.append(ReverseTokenSlimming(dim, kept[times], kept[0]) if times else nn.Identity())
    return nn.ModuleList(modules)
