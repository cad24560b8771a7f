"""Rotary positions (RoPE, arXiv 2403.13298) of tokens that slim.

Queries and keys are turned by angles that are linear in a patch's row and column, whichever table of timm's makes them:
angle = row · a + column · b + c, for each pair of channels. So a token that a TSM has merged has a position too, the mean
of its tokens' weighted by its assignment, and turns by the angle that belongs there. An assignment that only permutes
tokens carries every position along, and changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed, RotaryEmbeddingMRope
from torch import Tensor, nn

from sit_deploy.errors import InputError

# How far sines and cosines of the angles may be from those of the model's own table: both are float32.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Turns:
    """The angles of a rotary table, linear in row and column. Shapes: (pairs,), or (depth, heads, pairs) of a mixed one.

    Attributes:
        offset: angle of the first patch, in radians.
        row: what a row adds.
        column: what a column adds.
    """

    offset: Tensor
    row: Tensor
    column: Tensor

    def angles(self, places: Tensor) -> Tensor:
        """Return the angles of tokens at `places` (..., tokens, 2), row and column: (..., tokens, pairs)."""
        # written out: a product of matrices would be rounded to half precision under autocast
        return (
            places[..., :1] * self.row.unsqueeze(-2)
            + places[..., 1:] * self.column.unsqueeze(-2)
            + self.offset.unsqueeze(-2)
        )

    def of_block(self, index: int) -> Turns:
        """Return those of one block, where each has its own."""
        if self.offset.dim() == 1:
            return self
        return Turns(self.offset[index], self.row[index], self.column[index])


def turns_of(rope: nn.Module, grid: tuple[int, int]) -> Turns:
    """Return the angles that a module of timm's makes its table of, float32; those that are learned take a gradient.

    Args:
        rope: `timm.layers`' RotaryEmbeddingCat, -DinoV3, -Mixed or -MRope.
        grid: patches in a column and in a row.

    Raises:
        InputError: another kind.
    """
    by_column = getattr(rope, "grid_indexing", "ij") == "xy"  # its first coordinate is the column
    if isinstance(rope, RotaryEmbeddingMixed):
        first, second = rope.freqs.float()
        return _turns(first, second, torch.zeros_like(first), by_column)
    if isinstance(rope, RotaryEmbeddingMRope):
        row, column = (rope.inv_freq.float() * (rope.axis == axis) for axis in (1, 2))
        return Turns(torch.zeros_like(row), row, column)
    sides = grid[::-1] if by_column else grid
    if isinstance(rope, RotaryEmbeddingDinoV3):
        # the middle of a patch, -1 to 1 from edge to edge
        fold = {"max": max, "min": min}.get(rope.normalize_coords)
        lengths = (fold(sides),) * 2 if fold else sides
        steps = [2 / length for length in lengths]
        starts = [2 * (0.5 + rope.grid_offset) / length - 1 for length in lengths]
        frequency = 2 * math.pi / rope.periods.float()
    elif isinstance(rope, RotaryEmbeddingCat) and not rope.in_pixels:
        wanted = rope.ref_feat_shape or grid  # of which the places are those
        wanted = wanted[::-1] if by_column else wanted
        steps = [reference / side for reference, side in zip(wanted, sides, strict=True)]
        starts = [rope.grid_offset * step for step in steps]
        frequency = rope.bands.float()
    else:
        raise InputError(
            f"this model cannot be slimmed, for its positions are a {type(rope).__name__}; take it unslimmed"
        )
    none = torch.zeros_like(frequency)
    first, second = torch.cat((frequency, none)), torch.cat((none, frequency))
    return _turns(first * steps[0], second * steps[1], first * starts[0] + second * starts[1], by_column)


def _turns(first: Tensor, second: Tensor, offset: Tensor, by_column: bool) -> Turns:
    return Turns(offset, second, first) if by_column else Turns(offset, first, second)


def places_of(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return row and column of each patch, float32 (patches, 2), on the device of `like`."""
    rows, columns = (torch.arange(n, dtype=torch.float32, device=like.device) for n in grid)
    return torch.cartesian_prod(rows, columns)


@dataclass(frozen=True)
class Rotary:
    """Where the patch tokens are while they pass the blocks.

    Attributes:
        table: of the patches, as timm's blocks take it, (patches, 2 · head_dim), or (depth, heads, ...) of a mixed one:
            sines, then cosines.
        turns: the angles that it is made of.
        grid: patches in a column and in a row.
        half: whether the channels of a pair are half a head apart, not neighbours.
        places: row and column of each token, (B, tokens, 2), once they are not the patches any more.
    """

    table: Tensor
    turns: Turns
    grid: tuple[int, int]
    half: bool
    places: Tensor | None = None

    def of_block(self, index: int) -> Tensor:
        """Return sines and cosines for the tokens of block `index`, in a shape that timm's blocks take."""
        if self.places is None:
            return self.table[index] if self.table.dim() > 2 else self.table
        angles = self.turns.of_block(index).angles(self.places.unsqueeze(1))
        return table_of(angles, self.half)  # (B, 1 or heads, tokens, 2 · head_dim)

    def merge(self, assignment: Tensor) -> Rotary:
        """Return the positions of the tokens that an assignment (B, kept, tokens) makes."""
        places = places_of(self.grid, assignment) if self.places is None else self.places
        # shapes alone, on the meta device, have no autocast of their own
        with torch.autocast("cpu" if assignment.is_meta else assignment.device.type, enabled=False):
            return replace(self, places=assignment.float() @ places)


def table_of(angles: Tensor, half: bool) -> Tensor:
    """Return sines and cosines of angles (..., tokens, pairs) as timm lays them out: (..., tokens, 4 · pairs)."""
    parts = (angles.sin(), angles.cos())
    parts = (torch.cat((p, p), dim=-1) if half else p.repeat_interleave(2, dim=-1) for p in parts)
    return torch.cat(tuple(parts), dim=-1)


def check_turns(turns: Turns, table: Tensor, grid: tuple[int, int], half: bool) -> None:
    """Refuse angles that are not those of a model's own table.

    Raises:
        InputError: says so.
    """
    found = table_of(turns.angles(places_of(grid, table)), half)
    if not (found - table).abs().max() < _TOLERANCE:
        raise InputError(
            "this model cannot be slimmed, for its rotary positions are not linear in row and column; take it unslimmed"
        )
