"""Fitting a state dict to a model: what is resampled, what is left out, and what may be absent."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from sit_deploy.models.positions import resample_positions

StateDict = dict[str, Tensor]

# trained but never needed for inference; absent or present without harm
OPTIONAL_KEYS = re.compile(r"^(aux_head\.|rtsm\.)")
_GAMMA = re.compile(r"(?<=\d)\.gamma_([12])$")  # blocks.3.gamma_1
_LAYER_SCALE = re.compile(r"(?<=\d)\.ls([12])\.gamma$")
# what older versions and original code keep beside the weights, and a model computes from its size
_COMPUTED = re.compile(r"(.*\.)?(relative_position_index|rope\.(freqs_(cos|sin)|periods))$")
_SPLIT_BIAS = re.compile(r"\.attn\.[qv]_bias$")


def filter_state_dict(state: StateDict, model: nn.Module, antialias: bool = True) -> StateDict:
    """Fit a state dict to `model`: resample positions, drop what inference never uses (timm's filter hook).

    Positions of a square grid of another size are resampled (`positions.resample_positions`). Reverse TSMs are dropped unless
    the model has them, whose own stay where the state dict has none. An absent or unfitting aux head is replaced by the
    model's own, as nothing reads it.
    """
    own = model.state_dict()
    fitted = {
        k: v for k, v in _fitted(state, model, antialias).items() if k in own or not OPTIONAL_KEYS.match(k)
    }
    recovers = has_reverse_tsms(fitted)
    for key, value in own.items():
        unfitting = key.startswith("aux_head.") and (key not in fitted or fitted[key].shape != value.shape)
        if unfitting or (key.startswith("rtsm.") and not recovers):
            fitted[key] = value
    return {
        k: _cast(v, own[k].dtype) if k in own and v.shape == own[k].shape else v for k, v in fitted.items()
    }


def fit_partly(state: StateDict, model: nn.Module, antialias: bool = True) -> tuple[list[str], list[str]]:
    """Load what fits `model` by name and shape, positions resampled, and leave the rest of the model as it is.

    This is how a student starts from its teacher: its TSMs, and a head of another class count, stay new; so does the position
    of a dist token that the teacher has not.

    Returns:
        Names of the model that nothing was loaded into, and names of `state` that were left out.
    """
    own = model.state_dict()
    fitted = _fitted(_with_dist_row(state, model), model, antialias)
    given = {k: v for k, v in fitted.items() if k in own and v.shape == own[k].shape}
    taken = {k: v for k, w in given.items() if (v := _cast(w, own[k].dtype)).dtype == own[k].dtype}
    model.load_state_dict(taken, strict=False)
    return [k for k in own if k not in taken], [k for k in rename_keys(state, own) if k not in taken]


def rename_keys(state: StateDict, own: Collection[str] = ()) -> StateDict:
    """Return the state dict with LayerScale as the model `own` names it, whichever of timm's ways: official DeiT III has the other.

    Tables that a model computes by itself (numbers of relative positions, rotary ones) are left out where it has none to load.
    Queries and values that only have a bias of zeros, as DINOv3 is published, lose it where the model has none.
    """
    renamed = {}
    for key, value in state.items():
        name = key if key in own else _GAMMA.sub(r".ls\1.gamma", key)
        name = eva if (eva := _LAYER_SCALE.sub(r".gamma_\1", name)) in own else name
        if name in own or not (_COMPUTED.match(name) or (_SPLIT_BIAS.search(name) and not value.any())):
            renamed[name] = value
    return renamed


def _fitted(state: StateDict, model: nn.Module, antialias: bool) -> StateDict:
    """Return `state` with timm's names and positions of the model's grid."""
    return resample_positions(rename_keys(state, model.state_dict()), model, antialias)


def _with_dist_row(state: StateDict, model: nn.Module) -> StateDict:
    """Return `state` with a row of positions for a dist token exactly where `model` has it, behind the class token's, as in DeiT."""
    position, own = state.get("pos_embed"), model.state_dict()
    theirs, ours = (
        "dist_token" in names
        and "dist_pos_embed" not in names
        and not getattr(model, "no_embed_class", False)
        for names in (state, own)
    )
    if theirs == ours or position is None or position.ndim != 3 or position.shape[-1] != model.embed_dim:
        return state
    row = own["pos_embed"][:, 1:2].to(position) if ours else position[:, :0]
    return state | {"pos_embed": torch.cat((position[:, :1], row, position[:, 2 if theirs else 1 :]), dim=1)}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the model's type; integers stay what they are, as they are no weights."""
    return value if dtype.is_floating_point and not value.is_floating_point() else value.to(dtype)


def has_reverse_tsms(state: StateDict) -> bool:
    """Whether a state dict has the reverse TSMs of training."""
    return any(k.startswith("rtsm.") for k in state)
