"""How a vision transformer starts that learns from scratch and from few images, in minutes rather than days.

The usual start (weights and positions drawn with standard deviation 0.02) was made for a million images and hundreds of
epochs: branches and positions are faint beside the patches, and the class token hardly sees them at first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sit_deploy.errors import InputError


def initialise(model: nn.Module, seed: int = 0) -> None:
    """Give LV-ViT, or a plain vision transformer of timm, a start that learns quickly. In place, before any training.

    - Linear layers of the blocks: uniform with variance 2 / (fan_in + fan_out), "Understanding the difficulty of training
      deep feedforward neural networks" (Glorot and Bengio 2010); q, k and v are three matrices in one.
    - Position embeddings of the patches: `sine_cosine_positions`; those of class and dist token: 0. They go on learning.

    All else stays as it is: the stem (its BatchNorm takes any scale back out), the head, and the TSMs.

    Args:
        model: has `blocks`, and may have `pos_embed` (1, patches or prefix + patches, dim), or (1, rows, columns, dim), with its grid.
        seed: same seed, same weights; the global random state is left alone.

    Raises:
        InputError: a width that 4 does not divide.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            for matrix in layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,):
                nn.init.xavier_uniform_(matrix, generator=generator)
    positions = getattr(model, "pos_embed", None)
    if positions is not None:
        rows, columns = getattr(model, "grid_size", None) or model.patch_embed.grid_size
        patches = sine_cosine_positions(rows, columns, positions.shape[-1])
        with torch.no_grad():
            positions.zero_()
            if positions.ndim == 4:  # SAM's, as a grid
                positions.copy_(patches.view(1, rows, columns, -1))
            else:
                positions[0, -len(patches) :] = patches
            if hasattr(model, "dist_pos_embed"):
                model.dist_pos_embed.zero_()


def sine_cosine_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Return fixed positions (rows · columns, dim) float32, row by row; half of dim tells the column, half the row.

    Each half is the sines, then the cosines, of the place times 10000^(-i / (dim / 4)), after section 3.5 of "Attention Is
    All You Need" (arXiv 1706.03762), in two dimensions as in "Masked Autoencoders Are Scalable Vision Learners"
    (arXiv 2111.06377).

    Raises:
        InputError: a dim that 4 does not divide.
    """
    if dim % 4:
        raise InputError(f"sine-cosine positions need a width divisible by 4, got {dim}")
    frequencies = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1).float()
