"""Making a named model with the weights of a checkpoint; every mismatch is named, with what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.methods import TRAINING_FREE
from sit_deploy.models.beside import check_beside
from sit_deploy.models.catalog import CONFIGS, get_config, title
from sit_deploy.models.checkpoint import Checkpoint, read_checkpoint
from sit_deploy.models.config import ONE_OUTPUT, ModelConfig, check_class_count
from sit_deploy.models.mismatch import mismatch_words
from sit_deploy.models.positions import position_prefix, square_side
from sit_deploy.models.registry import create_model
from sit_deploy.models.state_dict import (
    StateDict,
    filter_state_dict,
    fit_partly,
    has_reverse_tsms,
)
from sit_deploy.text import WarningText

__all__ = ["LoadedModel", "fit_partly", "identify", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its weights.

    Attributes:
        model: the module.
        config: what it was made from.
        checkpoint: where its weights are from, None for random ones.
        notes: what a user should know of how they were fitted, a sentence each.
    """

    model: nn.Module
    config: ModelConfig
    checkpoint: Checkpoint | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.config.name


_ALSO = "; or slim it without training: --method transform"


def load_model(  # noqa: PLR0913
    name: str,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    ema: bool = True,
    reverse_tsm: bool = False,
    stages: tuple[int, ...] | None = None,
    keeping_ratio: float | None = None,
    checkpoint_key: str | None = None,
    key_is_shared: bool = False,
    binary: bool = False,
    model_option: str | None = "--model",
    headless: bool = False,
    kept: tuple[int, ...] | None = None,
    method: str | None = None,
) -> LoadedModel:
    """Make the named model (ours or timm's) and load a checkpoint into it strictly; without one, random weights of seed 0.

    Class count, dist token and the tokens that the TSMs keep are read from the checkpoint. A teacher's checkpoint is
    not taken for its student: only training starts one from the other (see `fit_partly`). Nothing is ever downloaded.

    Its arguments are the options of the command line, and so are more than seven.

    Args:
        name: of the model, or an alias.
        checkpoint: the file, or its folder.
        image_size: pixels of the square input, divisible by the patch size; the native size by default.
        num_classes: the head's outputs; the checkpoint's own, or 1000, by default. 2 for a checkpoint of one output z makes
            exactly the model of two whose logits are 0 and z.
        ema: take the averaged weights where the file has them beside the plain ones.
        reverse_tsm: make the reverse TSMs of training; those of the checkpoint, or new ones.
        stages: blocks of each stage, in place of the model's own; see `get_config`.
        keeping_ratio: likewise.
        checkpoint_key: where in the file the weights are, if there are several; see `read_checkpoint`.
        key_is_shared: the key may be of another file.
        binary: make two outputs of one, whatever `num_classes` says.
        model_option: what names this model on the command line, for remedies; None where nothing does.
        headless: nobody asks for logits: a checkpoint without a head makes a model without one.
        kept: patch tokens of each stage, in place of a ratio; see `get_config`.
        method: how tokens are merged; without training, of an unslimmed checkpoint.

    Raises:
        InputError: unknown model, unreadable checkpoint, one that does not fit (keys, shapes and remedy named), or one
            output, of which softmax makes 100 % whatever the image.
    """
    config = get_config(name, stages, keeping_ratio, kept, method)
    if num_classes is not None:
        check_class_count(num_classes)
    size = config.image_size if image_size is None else image_size
    config = config.at(size)
    options: dict[str, Any] = {"img_size": size, "reverse_tsm": reverse_tsm}
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(config, num_classes=num_classes or config.num_classes, **options)
        note = WarningText(
            "random weights (seed 0): every accuracy is chance; give --checkpoint for a real model"
        )
        return LoadedModel(model.eval(), config, None, (note,))

    read = read_checkpoint(
        checkpoint, ema, checkpoint_key, key_is_shared, fits=lambda names: looks_like(names, config)
    )
    _check_architecture(read, config, model_option)
    under = f", under the prefix '{read.prefix}'" if read.prefix else ""
    notes = [*read.notes]
    if under or read.source != "state_dict":  # else the file holds these weights alone: nothing to tell
        notes.insert(0, f"{read.source} weights of {read.path.name}{under}")
    if _outputs(read.state) == 1:
        if not (binary or num_classes == 2):
            remedy = "if it tells no from yes, pass --num-classes 2, which makes two outputs of it, exactly"
            if model_option != "--model":  # then there is none for its classes either
                remedy = "give one with an output for every class"
            raise InputError(f"checkpoint {read.path} has one output: {ONE_OUTPUT}; {remedy}")
        read = replace(read, state=_two_outputs(read.state))
        num_classes = 2
        notes.append(
            "its one output z became two, 0 and z, whose softmax is the sigmoid of z: class 1 is what z speaks for"
        )
    ends_in_features = headless and num_classes is None and not any(k.startswith("head.") for k in read.state)
    options["num_classes"] = 0 if ends_in_features else _class_count(read, config, num_classes)
    options["dist_token"] = "dist_token" in read.state
    trained = _kept_of_checkpoint(read.state, config)
    if trained and trained != (usual := config.tokens(size)[1:]):
        if kept:
            raise InputError(
                f"checkpoint {read.path} does not fit: its TSMs keep {_listed(trained)} tokens, not the {_listed(usual)} asked for; leave out "
                "--kept, or give the checkpoint of a model that keeps them"
            )
        options["kept"] = ((size // config.patch_size) ** 2, *trained)
    model = create_model(config, **options)
    state = filter_state_dict(read.state, model, read.antialias)
    if differences := mismatch_words(state, model, title(config), read.path, model_option):
        raise InputError(f"checkpoint {read.path} does not fit {title(config)}: {differences}")
    model.load_state_dict(state)
    notes += check_beside(read, model, config, model_option)
    side = square_side(read.state, [position_prefix(model)])
    height, width = model.grid_size
    if side and side != height:
        notes.append(
            f"positions resampled from {side}x{side} to {height}x{width} patches; check its accuracy at {size} pixels"
        )
    if "kept" in options:
        notes.append(
            f"its TSMs keep {_listed(trained, '/')} tokens, not the {_listed(usual, '/')} of {title(config)} at {size} pixels; check its accuracy"
        )
    if has_reverse_tsms(state) and not has_reverse_tsms(read.state):
        notes.append("its reverse TSMs are new: the checkpoint has none; train them before they are of use")
    return LoadedModel(model.eval(), config, read, tuple(notes))


def _listed(tokens: tuple[int, ...], between: str = ",") -> str:
    return between.join(map(str, tokens))


def identify(state: StateDict) -> tuple[str, ...]:
    """Return our named models whose family, width, depth and slimming a state dict has.

    sit_s and sit_xs differ in where they slim alone, which shows only in where their reverse TSMs begin.
    """
    return tuple(c.name for c in CONFIGS.values() if looks_like(state, c))


def looks_like(state: Mapping[str, Any], config: ModelConfig) -> bool:
    """Say whether a state dict, or what tells its shapes, has a model's family, width, depth and slimming."""
    width = _width(state)
    if width is None:
        return False
    blocks, tsms, rtsms = (_indices(state, part) for part in ("blocks", "tsm", "rtsm"))
    return (
        any(k.startswith("patch_embed.proj.") for k in state) == bool(config.base)
        and (width, len(blocks)) == (config.embed_dim, config.depth)
        and len(tsms) == _wanted_tsms(config)
        and (not rtsms or min(rtsms) == config.stage_blocks[0] - 1)
    )


def _wanted_tsms(config: ModelConfig) -> int:
    return 0 if config.method in TRAINING_FREE else len(config.stage_blocks) - 1


def _width(state: Mapping[str, Any]) -> int | None:
    """Return the width of a state dict's tokens; without positions of its own, by its patch embedding."""
    position, patches = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if position is None:
        return patches.shape[0] if patches is not None and patches.ndim == 4 else None
    return position.shape[-1] if position.ndim == 3 else None


def _indices(state: Mapping[str, Any], part: str) -> set[int]:
    return {int(k.split(".")[1]) for k in state if re.match(rf"{part}\.[0-9]{{1,3}}\.", k)}


def _check_architecture(read: Checkpoint, config: ModelConfig, option: str | None) -> None:
    """Refuse a checkpoint that is plainly of another model, in words rather than in names of weights."""
    if {"patch_embed.conv1.weight", "patch_embed.proj.weight", "aux_head.weight"} <= read.state.keys():
        raise InputError(
            f"checkpoint {read.path} is TokenLabeling's LV-ViT, whose stem ends in a projection and whose score adds half the best "
            "of its patches'; SiT's teachers are LV-ViTs without these: docs/weights.md says where they are"
        )
    if looks_like(read.state, config):
        return
    fits = identify(read.state)
    if fits:
        remedy = f"pass {option} {fits[0]}" if len(fits) == 1 else f"pass the {option} that it was trained as"
        if config.name in fits:
            remedy = f"leave out --stages{_ALSO}"
        if option is None:
            remedy = f"give the checkpoint of a {title(config)}"
        elif config.teacher in fits:
            remedy += f": a teacher must be distilled before it can be a {config.name}"
        raise InputError(
            f"checkpoint {read.path} does not fit {title(config)}: it looks like {' or '.join(fits)}; {remedy}"
        )
    blocks, tsms = (len(_indices(read.state, part)) for part in ("blocks", "tsm"))
    wanted = _wanted_tsms(config)
    if blocks == config.depth and tsms != wanted:
        remedy = (
            f"a teacher must be distilled before it can be slimmed: sit-deploy train{_ALSO}"
            if not tsms
            else f"pass the {tsms + 1} --stages that it was trained with"
        )
        if config.method in TRAINING_FREE:
            remedy = "leave out --method, which slims what nothing has slimmed before"
        if option != "--model":
            remedy = f"give the checkpoint of a {title(config)}"
        raise InputError(
            f"checkpoint {read.path} does not fit {title(config)}: it has {tsms} TSMs, not {wanted}; {remedy}"
        )


def _class_count(read: Checkpoint, config: ModelConfig, asked: int | None) -> int:
    outputs = _outputs(read.state)
    if not outputs:
        return asked or config.num_classes  # that the head does not fit is said where all else is
    if asked not in (None, outputs):
        raise InputError(
            f"checkpoint {read.path} has {outputs} classes, not {asked}; pass --num-classes {outputs} or leave it out"
        )
    return outputs


def _outputs(state: StateDict) -> int:
    """Return the outputs of a state dict's head, 0 where it has none."""
    head = state.get("head.weight", state.get("head.fc.weight"))  # the latter is SAM's
    return len(head) if head is not None and head.ndim == 2 else 0


def _two_outputs(state: StateDict) -> StateDict:
    """Return a state dict of one output z as one of two: 0 and z."""
    heads = [k for k in state if k.startswith(("head.", "head_dist.")) and state[k].shape[:1] == (1,)]
    return state | {k: torch.cat((torch.zeros_like(state[k]), state[k])) for k in heads}


def _kept_of_checkpoint(state: StateDict, config: ModelConfig) -> tuple[int, ...] | None:
    """Return the tokens that a checkpoint's TSMs keep, None where it has not all of them."""
    kept = []
    for i in range(len(config.stage_blocks) - 1):
        weight, bias = (state.get(f"tsm.{i}.weight.3.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            return None
        kept.append(len(weight))
    return tuple(kept)
