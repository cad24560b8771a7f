"""Position tables of checkpoints, resampled to the grid of the model that they are loaded into, as timm does it.

Absolute positions, biases of relative positions (BEiT), and relative positions by row and column (SAM). Imports timm when
something is resampled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_BIASES = "relative_position_bias_table"
_BY_AXIS = ("attn.rel_pos_h", "attn.rel_pos_w")
# rows of a table of biases that are not between two patches: from and to a class token, and of it to itself
_CLASS_TOKEN_BIASES = 3


def resample_positions(
    state: Mapping[str, Tensor], model: nn.Module, antialias: bool = True
) -> dict[str, Tensor]:
    """Return a state dict whose positions, where they are of another square grid, are resampled to that of the model.

    Bicubically as timm resamples them; a table of relative positions by row or column linearly, as SAM reads one that does
    not fit. What no square grid explains stays as it is.

    Args:
        state: the weights.
        model: that they are for.
        antialias: as timm does it; transformers reads absolute positions without.
    """
    own, grid = model.state_dict(), _grid_size(model)
    return {
        key: _resampled(key, value, own[key], grid, model, antialias)
        if key in own and value.shape != own[key].shape
        else value
        for key, value in state.items()
    }


def _resampled(
    key: str, value: Tensor, own: Tensor, grid: tuple[int, int], model: nn.Module, antialias: bool
) -> Tensor:
    from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc, resize_rel_pos_bias_table

    if value.ndim != own.ndim:
        return value
    if key == "pos_embed" and value.shape[::2] == own.shape[::2] and value.ndim == 3:
        prefix = position_prefix(model)
        side = grid_side(value, prefix)
        if side:
            return resample_abs_pos_embed(
                value.float(), list(grid), [side, side], prefix, antialias=antialias
            )
    elif key == "pos_embed" and value.ndim == 4 and value.shape[::3] == own.shape[::3]:
        return resample_abs_pos_embed_nhwc(value.float(), list(grid))
    elif key.endswith(_BIASES) and value.ndim == 2 and value.shape[1] == own.shape[1]:
        others = len(own) - (2 * grid[0] - 1) * (2 * grid[1] - 1)
        if _side_of_biases(len(value) - others):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of timm's interpolation: of memory that is not contiguous
                return resize_rel_pos_bias_table(value.float(), grid, tuple(own.shape))
    elif key.endswith(_BY_AXIS) and value.ndim == 2 and value.shape[1] == own.shape[1]:
        return F.interpolate(value.float().T[None], size=len(own), mode="linear")[0].T.contiguous()
    return value


def position_prefix(model: nn.Module) -> int:
    """Return how many rows of a model's position embedding are not patches; 0 where it has none."""
    position = model.state_dict().get("pos_embed")
    rows, columns = _grid_size(model)
    return position.shape[1] - rows * columns if position is not None and position.ndim == 3 else 0


def _grid_size(model: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a model's patches."""
    return tuple(model.grid_size if hasattr(model, "grid_size") else model.patch_embed.grid_size)


def grid_side(position: Tensor | None, prefix: int = 1) -> int | None:
    """Return the side of the square grid that positions are of: (1, prefix + side², dim) or (1, side, side, dim); None for others."""
    if position is None or position.ndim not in (3, 4):
        return None
    if position.ndim == 4:
        return position.shape[1] if position.shape[1] == position.shape[2] else None
    return _root(position.shape[1] - prefix)


def square_side(state: Mapping[str, Tensor], prefixes: Iterable[int]) -> int | None:
    """Return the side of the square grid that the positions of a state dict are of, None where none is told.

    Args:
        state: the weights; of several tables the absolute one counts.
        prefixes: how many rows of an absolute table may be no patches, the likeliest first.
    """
    side = next(filter(None, (grid_side(state.get("pos_embed"), n) for n in prefixes)), None)
    table = next((v for k, v in state.items() if k.endswith(_BIASES) and v.ndim == 2), None)
    if side or table is None:
        return side
    return _side_of_biases(len(table)) or _side_of_biases(len(table) - _CLASS_TOKEN_BIASES)


def _side_of_biases(rows: int) -> int | None:
    """Return the side of the grid between whose patches there are so many relative positions: (2 · side - 1)²."""
    length = _root(rows)
    return (length + 1) // 2 if length and length % 2 else None


def _root(count: int) -> int | None:
    root = math.isqrt(max(count, 0))
    return root if root and root * root == count else None
