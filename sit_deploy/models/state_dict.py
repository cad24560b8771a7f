"""Fitting a state dict to a model: what is resampled, what is left out, and what may be absent."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

# trained but never needed for inference; absent or present without harm
OPTIONAL_KEYS = re.compile(r"^(aux_head\.|rtsm\.)")
_GAMMA = re.compile(r"(?<=\d)\.gamma_([12])$")  # blocks.3.gamma_1


def filter_state_dict(state: StateDict, model: nn.Module) -> StateDict:
    """Fit a state dict to `model`: resample positions, drop what inference never uses (timm's filter hook).

    Position embeddings are resampled bicubically from a square grid of another size. Reverse TSMs are dropped unless
    the model has them, whose own stay where the state dict has none. An absent or unfitting aux head is replaced by the
    model's own, as nothing reads it.
    """
    own = model.state_dict()
    fitted = {k: v for k, v in _resample(state, model).items() if k in own or not OPTIONAL_KEYS.match(k)}
    recovers = has_reverse_tsms(fitted)
    for key, value in own.items():
        unfitting = key.startswith("aux_head.") and (key not in fitted or fitted[key].shape != value.shape)
        if unfitting or (key.startswith("rtsm.") and not recovers):
            fitted[key] = value
    return {
        k: _cast(v, own[k].dtype) if k in own and v.shape == own[k].shape else v for k, v in fitted.items()
    }


def fit_partly(state: StateDict, model: nn.Module) -> tuple[list[str], list[str]]:
    """Load what fits `model` by name and shape, positions resampled, and leave the rest of the model as it is.

    This is how a student starts from its teacher: its TSMs, and a head of another class count, stay new.

    Returns:
        Names of the model that nothing was loaded into, and names of `state` that were left out.
    """
    own = model.state_dict()
    given = {k: v for k, v in _resample(state, model).items() if k in own and v.shape == own[k].shape}
    taken = {k: v for k, w in given.items() if (v := _cast(w, own[k].dtype)).dtype == own[k].dtype}
    model.load_state_dict(taken, strict=False)
    return [k for k in own if k not in taken], [k for k in rename_keys(state) if k not in taken]


def rename_keys(state: StateDict) -> StateDict:
    """Return the state dict with the LayerScale of official DeiT III checkpoints under timm's names."""
    return {_GAMMA.sub(r".ls\1.gamma", k): v for k, v in state.items()}


def _resample(state: StateDict, model: nn.Module) -> StateDict:
    """Return `state` with timm's names and positions of the model's grid."""
    from timm.layers import resample_abs_pos_embed

    fitted = rename_keys(state)
    position, size = fitted.get("pos_embed"), model.state_dict()["pos_embed"].shape
    prefix = position_prefix(model)
    side = grid_side(position, prefix)
    if side and side * side + prefix != size[1] and position.shape[::2] == size[::2]:
        fitted["pos_embed"] = resample_abs_pos_embed(
            position.float(), list(model.grid_size), old_size=[side, side], num_prefix_tokens=prefix
        )
    return fitted


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the model's type; integers stay what they are, as they are no weights."""
    return value if dtype.is_floating_point and not value.is_floating_point() else value.to(dtype)


def has_reverse_tsms(state: StateDict) -> bool:
    """Whether a state dict has the reverse TSMs of training."""
    return any(k.startswith("rtsm.") for k in state)


def position_prefix(model: nn.Module) -> int:
    """Return how many rows of the position embedding are not patches: a SiT's dist token has one of its own elsewhere."""
    if getattr(model, "no_embed_class", False):
        return 0
    return model.num_prefix_tokens - model.has_dist_token


def grid_side(position: Tensor | None, prefix: int = 1) -> int | None:
    """Return the side of the square patch grid that (1, prefix + side², dim) positions are of, None where there is none."""
    if position is None or position.ndim != 3:
        return None
    patches = max(position.shape[1] - prefix, 0)
    side = math.isqrt(patches)
    return side if side and side * side == patches else None
