"""Rotary positions in the deploy form: constants for patches, a little arithmetic for tokens that have slimmed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.models.rotary import Turns, places_of, turns_of
from sit_deploy.models.slim import SlimEva
from sit_deploy.models.timm_vit import rotary_table, rotates_halves


class _Merge(nn.Module):
    """Row and column (B, kept, 2) of the tokens that an assignment (B, kept, tokens) makes of those at `places`, or of the patches."""

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        # (1, patches, 2): of three axes, so that nothing takes it for the weight of a layer
        self.register_buffer("places", places)

    def forward(self, assignment: Tensor, places: Tensor | None = None) -> Tensor:
        return assignment @ (self.places if places is None else places)


class DeployPositions(nn.Module):
    """What queries and keys are turned by in each block: cosines and sines, (1 or B, 1 or heads, prefix + tokens, head_dim).

    A head's channels come as two halves, turned into each other: x · cos + (second half, first half) · sin, where the sines
    of the first half are negative. Prefix tokens have no place: they turn by nothing.

    Args:
        model: has rotary positions.
    """

    def __init__(self, model: SlimEva) -> None:
        super().__init__()
        table, halves, prefix = rotary_table(model), rotates_halves(model), model.num_prefix_tokens
        self.prefix = prefix
        self.by_block = table.dim() > 2
        sine, cosine = (_in_halves(part, halves) for part in table.float().chunk(2, dim=-1))
        half = sine.shape[-1] // 2
        sine = torch.cat((-sine[..., :half], sine[..., half:]), dim=-1)
        # (1 or depth, 1 or heads, tokens, head_dim)
        sine, cosine = (t if self.by_block else t[None, None] for t in (sine, cosine))
        self.register_buffer("sine", F.pad(sine, (0, 0, prefix, 0)))
        self.register_buffer("cosine", F.pad(cosine, (0, 0, prefix, 0), value=1.0))
        if not model.slim_after:
            return
        turns = turns_of(model.rope, model.grid_size)
        for name, angle in (("offset", turns.offset), ("row", turns.row), ("column", turns.column)):
            # sines of the first half are negative, cosines do not care; (1 or depth, 1 or heads, head_dim)
            both = torch.cat((-angle, angle), dim=-1)
            self.register_buffer(name, both if self.by_block else both[None, None])
        self.merge = _Merge(places_of(model.grid_size, sine)[None])

    def forward(self, block: int, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for a block whose patch tokens are at `places` (B, tokens, 2), at the patches' by default."""
        which = slice(block, block + 1) if self.by_block else slice(None)
        if places is None:
            return self.cosine[which], self.sine[which]
        turns = Turns(self.offset[which], self.row[which], self.column[which])
        angles = turns.angles(places[:, None])
        angles = F.pad(angles, (0, 0, self.prefix, 0)) if self.prefix else angles
        return angles.cos(), angles.sin()


def _in_halves(table: Tensor, halves: bool) -> Tensor:
    """Return a table whose channels of a pair are half a head apart."""
    return table if halves else torch.cat((table[..., ::2], table[..., 1::2]), dim=-1)
