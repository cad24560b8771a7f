"""What stands beside a checkpoint's weights, or in how its file keeps them, compared with the model that they were loaded into.

The same weights fit a model of other heads, of another activation or pooling, and give other scores.
"""

from __future__ import annotations

from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models import clip_names, flax_names, hugging_face_names
from sit_deploy.models.catalog import title
from sit_deploy.models.checkpoint import Checkpoint
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.config_json import CONFIG, ConfigJson
from sit_deploy.models.hugging_face_config import activation_note, check_config
from sit_deploy.models.timm_name import made_otherwise


def check_beside(read: Checkpoint, model: nn.Module, config: ModelConfig, option: str | None) -> list[str]:
    """Compare what tells how a checkpoint's model computes with the model of timm that has its weights.

    Args:
        read: the checkpoint.
        model: on the CPU, with its weights.
        config: of the model; one of ours shows all of it in its weights.
        option: what names the model on the command line, None where nothing does.

    Returns:
        What a user should know, a sentence each.

    Raises:
        InputError: it is another model, which the line names or says how to find.
    """
    if not config.base:
        return []
    name = title(config)
    if other := made_otherwise(ConfigJson.beside(read.path), config.base, model.img_size):
        remedy = f"pass {option} {other}" if option else f"give the checkpoint of a {config.base}"
        raise InputError(
            f"checkpoint {read.path} is of {other} by the {CONFIG} beside it, which with the same weights gives other scores than "
            f"{config.base}; {remedy}"
        )
    notes: list[str] = []
    if hugging_face_names.NOTE in read.notes:
        notes += check_config(read.path, model, name, option)
    if clip_names.NOTE in read.notes:
        notes += check_config(read.path, model, name, option, open_clip=True)
    if flax_names.NOTE in read.notes:
        notes += _check_google(read, model, name, option)
    return notes


def _check_google(read: Checkpoint, model: nn.Module, name: str, option: str | None) -> list[str]:
    """Compare heads, which Google's arrays have a side for, and the activation, which its code approximates by tanh."""
    block = next(iter(getattr(model, "blocks", ())), None)
    own = getattr(getattr(block, "attn", None), "num_heads", None)
    if own and read.heads and read.heads != own:
        remedy = f"pass the {option} that it was trained as" if option else f"give the checkpoint of a {name}"
        raise InputError(
            f"checkpoint {read.path} does not fit {name}: its attention has {read.heads} heads by the shape of its arrays, not {own}; {remedy}"
        )
    activation = getattr(getattr(block, "mlp", None), "act", None)
    return [] if activation is None else activation_note(activation, "gelu_pytorch_tanh", name)
