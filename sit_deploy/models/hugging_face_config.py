"""What a configuration beside a checkpoint says of a model that its weights do not show: activation, heads, pooling.

Of transformers that is config.json, of open_clip open_clip_config.json.

The same weights fit a model of another activation, or of as many channels in other heads, and give other scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import CONFIG, OPEN_CLIP, ConfigJson, fields_beside
from sit_deploy.text import WarningText

# where a config leaves it out, by what is in the kind's name: CLIP's kin (Chinese CLIP, MetaCLIP 2, AltCLIP) and SigLIP; others take GELU
_DEFAULTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
_LARGEST_EPSILON = 1e-4  # of norms, that is little next to the variance of a model's tokens
_SMALLEST_EPSILON = 2e-6  # that may show in scores: 1e-6 in place of transformers' 1e-12 does not


def check_config(
    path: Path, model: nn.Module, name: str, option: str | None, *, open_clip: bool = False
) -> list[str]:
    """Compare the configuration beside a checkpoint with the model that its weights were loaded into.

    Args:
        path: of the checkpoint.
        model: of timm, on the CPU.
        name: of the model, for messages.
        option: what names it on the command line, None where nothing does.
        open_clip: its weights have the names of OpenAI's CLIP.

    Returns:
        What a user should know, a sentence each: an activation that is nearly the same, or that nothing tells, features of another
        pooling.

    Raises:
        InputError: other heads, another pooling, other angles of rotary positions, an epsilon of norms that counts, or an activation
            that changes scores.
    """
    file = OPEN_CLIP if open_clip else CONFIG
    fields = _open_clip_fields(path) if open_clip else ConfigJson.beside(path).vision
    if open_clip and not fields:
        return [WarningText(_UNTOLD)]
    block = next(iter(getattr(model, "blocks", ())), None)
    if not fields or block is None:
        return []
    remedy = f"pass the {option} that it was trained as" if option else f"give the checkpoint of a {name}"
    heads, own = fields.get("num_attention_heads"), getattr(getattr(block, "attn", None), "num_heads", None)
    if isinstance(heads, int) and own and heads != own:
        raise InputError(
            f"checkpoint {path} does not fit {name}: its attention has {heads} heads by the {file} beside it, not {own}; {remedy}"
        )
    if (pool := fields.get("pool_type", "tok")) != "tok":
        raise InputError(
            f"checkpoint {path} does not fit {name}: its pooling is '{pool}' by the {file} beside it, not that of the class token; {remedy}"
        )
    notes: list[str] = []
    if str(fields.get("model_type", "")).startswith("dinov3") and getattr(model, "global_pool", "") == "avg":
        notes.append(
            f"timm's features of {name} are the mean of its patches; transformers' pooler_output is its class token, which --outputs cls gives"
        )
    if fields.get("problem_type") == "multi_label_classification":
        notes.append(
            WarningText(
                f"its classes may hold together (problem_type in {file}): each has the sigmoid of its logit, and what is shown here as a "
                "probability is a softmax"
            )
        )
    if fields.get("problem_type") == "regression":
        notes.append(
            WarningText(
                "its outputs are numbers of a regression (problem_type in config.json), and no scores of classes: what is shown here as a "
                "probability or a class means nothing; --json and engines have the outputs as they are"
            )
        )
    if differs := _other_numbers(fields, model, block):
        raise InputError(
            f"checkpoint {path} does not fit {name}: {differs} by the {file} beside it; {remedy}"
        )
    epsilon, own = _epsilons(fields, block)
    if epsilon is not None and abs(epsilon - own) > _SMALLEST_EPSILON:
        notes.append(
            WarningText(
                f"its norms have an epsilon of {epsilon:g} by the {file} beside it, those of {name} {own:g}: scores differ by as much as that "
                "is of its tokens' variance; check its accuracy"
            )
        )
    activation = getattr(getattr(block, "mlp", None), "act", None)
    # DINOv2's gated MLPs are SwiGLU, whatever the field says
    if activation is None or fields.get("use_swiglu_ffn"):
        return notes
    said = str(_activation(fields))
    difference = _difference(activation, _ACTIVATIONS[said]) if said in _ACTIVATIONS else math.inf
    if difference > 1e-3:
        if said == "quick_gelu" and option:
            remedy = f"pass the {option} of timm with 'quickgelu' in its name"
        raise InputError(
            f"checkpoint {path} does not fit {name}: its activation is {said[:40]} by the {file} beside it, not "
            f"{type(activation).__name__}; {remedy}"
        )
    return notes + activation_note(activation, said, name)


def activation_note(activation: nn.Module, said: str, name: str) -> list[str]:
    """Return that a model's activation is nearly the one that its weights were trained with, nothing where it is the same."""
    difference = _difference(activation, _ACTIVATIONS[said])
    if difference <= 1e-6:
        return []
    return [
        WarningText(
            f"its activation is {said}, that of {name} differs from it by up to {difference:.0e}, as in timm: check its accuracy"
        )
    ]


def _other_numbers(fields: Mapping[str, Any], model: nn.Module, block: nn.Module) -> str | None:
    """Return which of the numbers that no weight shows are others than the model's, in words."""
    nested = fields.get("rope_parameters")  # of transformers 5
    theta = fields.get("rope_theta", nested.get("rope_theta") if isinstance(nested, dict) else None)
    own = getattr(getattr(model, "rope", None), "temperature", None)
    if _number(theta) and _number(own) and theta != own:
        return f"its rotary positions have a theta of {theta}, not {own:g},"
    epsilon, own = _epsilons(fields, block)
    if epsilon is not None and not abs(epsilon - own) <= _LARGEST_EPSILON:
        return f"its norms have an epsilon of {epsilon}, not {own:g},"
    return None


def _epsilons(fields: Mapping[str, Any], block: nn.Module) -> tuple[float | None, float]:
    """Return the epsilon of norms by a configuration, None where it does not say, and the model's."""
    epsilon, own = fields.get("layer_norm_eps"), getattr(getattr(block, "norm1", None), "eps", None)
    return (epsilon, own) if _number(epsilon) and _number(own) else (None, 0.0)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_UNTOLD = (
    f"no {OPEN_CLIP} beside it tells whether its activation is GELU or QuickGELU, which OpenAI's own weights and those of DFN have "
    "(timm's models with 'quickgelu' in their names): check its accuracy"
)


def _open_clip_fields(path: Path) -> dict[str, Any]:
    """Return what open_clip's configuration says in transformers' terms (open_clip/model.py, CLIPVisionCfg has the defaults)."""
    whole = fields_beside(path, OPEN_CLIP).get("model_cfg")
    vision = whole.get("vision_cfg") if isinstance(whole, dict) else None
    if not isinstance(vision, dict):
        return {}
    width, head = vision.get("width", 768), vision.get("head_width", 64)
    norms, act = vision.get("norm_kwargs"), vision.get("act_kwargs")
    tanh = isinstance(act, dict) and act.get("approximate") == "tanh"
    counted = isinstance(width, int) and isinstance(head, int) and head > 0
    return {
        "num_attention_heads": width // head if counted else None,
        "hidden_act": "quick_gelu" if whole.get("quick_gelu") else "gelu_pytorch_tanh" if tanh else "gelu",
        "layer_norm_eps": norms.get("eps") if isinstance(norms, dict) else None,
        # of older releases the second
        "pool_type": "avg" if vision.get("global_average_pool") else vision.get("pool_type", "tok"),
    }


def _difference(activation: nn.Module, theirs: Any) -> float:
    x: Tensor = torch.linspace(-4, 4, 801)
    with torch.no_grad():
        return float((activation(x.clone()) - theirs(x)).abs().max())


def _activation(fields: Mapping[str, Any]) -> Any:
    kind = str(fields.get("model_type", ""))
    default = next((act for family, act in _DEFAULTS.items() if family in kind), "gelu")
    return fields.get("hidden_act", default)
