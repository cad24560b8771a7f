"""Fitting a state dict to a model: what is resampled, what is left out, and what may be absent."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

# trained but never needed for inference; absent or present without harm
OPTIONAL_KEYS = re.compile(r"^(aux_head\.|rtsm\.)")


def filter_state_dict(state: StateDict, model: nn.Module) -> StateDict:
    """Fit a state dict to `model`: resample positions, drop what inference never uses (timm's filter hook).

    Position embeddings are resampled bicubically from a square grid of another size. Reverse TSMs are dropped unless
    the model has them, whose own stay where the state dict has none. An absent or unfitting aux head is replaced by the
    model's own, as nothing reads it.
    """
    from timm.layers import resample_abs_pos_embed

    own = model.state_dict()
    fitted = {k: v for k, v in state.items() if k in own or not OPTIONAL_KEYS.match(k)}
    recovers = has_reverse_tsms(fitted)
    for key, value in own.items():
        unfitting = key.startswith("aux_head.") and (key not in fitted or fitted[key].shape != value.shape)
        if unfitting or (key.startswith("rtsm.") and not recovers):
            fitted[key] = value
    position, size = fitted.get("pos_embed"), own["pos_embed"].shape
    side = grid_side(position)
    if side and side * side + 1 != size[1] and position.shape[::2] == size[::2]:
        fitted["pos_embed"] = resample_abs_pos_embed(
            position.float(), list(model.grid_size), old_size=[side, side], num_prefix_tokens=1
        )
    return {k: _cast(v, own[k].dtype) if k in own else v for k, v in fitted.items()}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the model's type; integers stay what they are, as they are no weights."""
    return value if dtype.is_floating_point and not value.is_floating_point() else value.to(dtype)


def has_reverse_tsms(state: StateDict) -> bool:
    return any(k.startswith("rtsm.") for k in state)


def grid_side(position: Tensor | None) -> int | None:
    """Return the side of the square patch grid that (1, 1 + side², dim) positions are of, None where there is none."""
    if position is None or position.ndim != 3:
        return None
    side = math.isqrt(max(position.shape[1] - 1, 0))
    return side if side and side * side == position.shape[1] - 1 else None
