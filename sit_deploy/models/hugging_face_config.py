"""What transformers' config.json beside a checkpoint says of a model that its weights do not show: activation and heads.

The same weights fit a model of another activation, or of as many channels in other heads, and give other scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import ConfigJson
from sit_deploy.text import WarningText

# where a config leaves it out: transformers' CLIPVisionConfig and SiglipVisionConfig; all others take GELU
_DEFAULTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


def check_config(path: Path, model: nn.Module, name: str, option: str | None) -> list[WarningText]:
    """Compare the configuration beside a checkpoint with the model that its weights were loaded into.

    Args:
        path: of the checkpoint.
        model: of timm, on the CPU.
        name: of the model, for messages.
        option: what names it on the command line, None where nothing does.

    Returns:
        What a user should know: an activation that is nearly the same.

    Raises:
        InputError: other heads, or an activation that changes scores.
    """
    fields = ConfigJson.beside(path).vision
    block = next(iter(getattr(model, "blocks", ())), None)
    if not fields or block is None:
        return []
    remedy = f"pass the {option} that it was trained as" if option else f"give the checkpoint of a {name}"
    heads, own = fields.get("num_attention_heads"), getattr(getattr(block, "attn", None), "num_heads", None)
    if isinstance(heads, int) and own and heads != own:
        raise InputError(
            f"checkpoint {path} does not fit {name}: its attention has {heads} heads by the config.json beside it, not {own}; {remedy}"
        )
    activation = getattr(getattr(block, "mlp", None), "act", None)
    theirs = _ACTIVATIONS.get(str(_activation(fields)))
    if activation is None or theirs is None or hasattr(block.mlp, "fc1_g"):
        return []
    difference = _difference(activation, theirs)
    if difference > 1e-3:
        if _activation(fields) == "quick_gelu" and option:
            remedy = f"pass the {option} of timm with 'quickgelu' in its name"
        raise InputError(
            f"checkpoint {path} does not fit {name}: its activation is {_activation(fields)} by the config.json beside it, not "
            f"{type(activation).__name__}; {remedy}"
        )
    if difference > 1e-6:
        return [
            WarningText(
                f"its activation is {_activation(fields)}, that of {name} differs from it by up to {difference:.0e}, as in timm: "
                "check its accuracy"
            )
        ]
    return []


def _difference(activation: nn.Module, theirs: Any) -> float:
    x: Tensor = torch.linspace(-4, 4, 801)
    with torch.no_grad():
        return float((activation(x.clone()) - theirs(x)).abs().max())


def _activation(fields: Mapping[str, Any]) -> Any:
    kind = str(fields.get("model_type", ""))
    default = next((act for family, act in _DEFAULTS.items() if kind.startswith(family)), "gelu")
    return fields.get("hidden_act", default)
