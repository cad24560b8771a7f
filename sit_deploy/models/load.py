"""Making a named model with the weights of a checkpoint, every mismatch named: which keys, which shapes, what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models.checkpoint import Checkpoint, read_checkpoint
from sit_deploy.models.configs import CONFIGS, ModelConfig, get_config
from sit_deploy.models.fit import (
    StateDict,
    filter_state_dict,
    fit_partly,
    grid_side,
    has_reverse_tsms,
    position_prefix,
)
from sit_deploy.models.registry import create_model

__all__ = ["LoadedModel", "fit_partly", "identify", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its weights. notes: what a user should know of how they were fitted, a sentence each."""

    model: nn.Module
    config: ModelConfig
    checkpoint: Checkpoint | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.config.name


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    ema: bool = True,
    reverse_tsm: bool = False,
    stages: tuple[int, ...] | None = None,
    keeping_ratio: float | None = None,
) -> LoadedModel:
    """Make the named model (ours or timm's) and load a checkpoint into it strictly; without one, random weights of seed 0.

    Class count, dist token and the tokens that the TSMs keep are read from the checkpoint. A teacher's checkpoint is
    not taken for its student: only training starts one from the other (see `fit_partly`). Nothing is ever downloaded.

    Args:
        image_size: pixels of the square input, divisible by the patch size; the native size by default.
        num_classes: the head's outputs; the checkpoint's own, or 1000, by default.
        ema: take the averaged weights where the file has them beside the plain ones.
        reverse_tsm: make the reverse TSMs of training; those of the checkpoint, or new ones.
        stages, keeping_ratio: in place of the model's own; see `get_config`.
    Raises:
        InputError: unknown model, unreadable checkpoint, or one that does not fit: keys, shapes and remedy named.
    """
    config = get_config(name, stages, keeping_ratio)
    if num_classes is not None and num_classes < 1:
        raise InputError(f"class count must be at least 1, got {num_classes}; pass --num-classes 1 or more")
    size = config.image_size if image_size is None else image_size
    options: dict[str, Any] = {"img_size": size, "reverse_tsm": reverse_tsm}
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(config, num_classes=num_classes or config.num_classes, **options)
        note = "random weights (seed 0): every accuracy is chance; give --checkpoint for a real model"
        return LoadedModel(model.eval(), config, None, (note,))

    read = read_checkpoint(checkpoint, ema)
    _check_architecture(read, config)
    notes = [f"{read.source} weights of {read.path.name}"]
    options["num_classes"] = _class_count(read, config, num_classes)
    options["dist_token"] = "dist_token" in read.state
    kept = _kept_of_checkpoint(read.state, config)
    if kept and kept != config.tokens(size)[1:]:
        options["kept"] = ((size // config.patch_size) ** 2, *kept)
    model = create_model(config, **options)
    state = filter_state_dict(read.state, model)
    _check_fit(state, model, config.title, read)
    model.load_state_dict(state)

    side = grid_side(read.state["pos_embed"], position_prefix(model))
    height, width = model.grid_size
    if side != height:
        notes.append(
            f"positions resampled from {side}x{side} to {height}x{width} patches; check its accuracy at {size} pixels"
        )
    if "kept" in options:
        found, usual = ("/".join(map(str, tokens)) for tokens in (kept, config.tokens(size)[1:]))
        notes.append(
            f"its TSMs keep {found} tokens, not the {usual} of {config.title} at {size} pixels; check its accuracy"
        )
    if has_reverse_tsms(state) and not has_reverse_tsms(read.state):
        notes.append("its reverse TSMs are new: the checkpoint has none; train them before they are of use")
    return LoadedModel(model.eval(), config, read, tuple(notes))


def identify(state: StateDict) -> tuple[str, ...]:
    """Return our named models whose family, width, depth and slimming a state dict has.

    sit_s and sit_xs differ in where they slim alone, which shows only in where their reverse TSMs begin.
    """
    return tuple(c.name for c in CONFIGS.values() if _looks_like(state, c))


def _looks_like(state: StateDict, config: ModelConfig) -> bool:
    position = state.get("pos_embed")
    if position is None or position.ndim != 3:
        return False
    blocks, tsms, rtsms = (_indices(state, part) for part in ("blocks", "tsm", "rtsm"))
    return (
        any(k.startswith("patch_embed.proj.") for k in state) == bool(config.base)
        and (position.shape[-1], len(blocks)) == (config.embed_dim, config.depth)
        and len(tsms) == len(config.stage_blocks) - 1
        and (not rtsms or min(rtsms) == config.stage_blocks[0] - 1)
    )


def _indices(state: StateDict, part: str) -> set[int]:
    return {int(k.split(".")[1]) for k in state if re.match(rf"{part}\.[0-9]{{1,3}}\.", k)}


def _check_architecture(read: Checkpoint, config: ModelConfig) -> None:
    """Refuse a checkpoint that is plainly of another model, in words rather than in names of weights."""
    if config.base and any(k in read.state for k in ("dist_token", "head_dist.weight")):
        raise InputError(
            f"checkpoint {read.path} is of a distilled DeiT, whose dist token {config.name} has not; give a checkpoint of a plain one"
        )
    if _looks_like(read.state, config):
        return
    fits = identify(read.state)
    if fits:
        remedy = f"pass --model {fits[0]}" if len(fits) == 1 else "pass the --model that it was trained as"
        if config.name in fits:
            remedy = "leave out --stages"
        if config.teacher in fits:
            remedy += f": a teacher must be distilled before it can be a {config.name}"
        raise InputError(
            f"checkpoint {read.path} does not fit {config.title}: it looks like {' or '.join(fits)}; {remedy}"
        )
    blocks, tsms, wanted = (
        len(_indices(read.state, "blocks")),
        len(_indices(read.state, "tsm")),
        config.stage_blocks,
    )
    if blocks == config.depth and tsms != len(wanted) - 1:
        remedy = (
            "a teacher must be distilled before it can be slimmed: sit-deploy train"
            if not tsms
            else f"pass the {tsms + 1} --stages that it was trained with"
        )
        raise InputError(
            f"checkpoint {read.path} does not fit {config.title}: it has {tsms} TSMs, not {len(wanted) - 1}; {remedy}"
        )


def _class_count(read: Checkpoint, config: ModelConfig, asked: int | None) -> int:
    head = read.state.get("head.weight")
    if head is None or head.ndim != 2 or not len(head):
        return asked or config.num_classes  # that the head does not fit is said where all else is
    if asked not in (None, len(head)):
        raise InputError(
            f"checkpoint {read.path} has {len(head)} classes, not {asked}; pass --num-classes {len(head)} or leave it out"
        )
    return len(head)


def _kept_of_checkpoint(state: StateDict, config: ModelConfig) -> tuple[int, ...] | None:
    """Return the tokens that a checkpoint's TSMs keep, None where it has not all of them."""
    kept = []
    for i in range(len(config.stage_blocks) - 1):
        weight, bias = (state.get(f"tsm.{i}.weight.3.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            return None
        kept.append(len(weight))
    return tuple(kept)


def _check_fit(state: StateDict, model: nn.Module, name: str, read: Checkpoint) -> None:
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shared = [k for k in own if k in state]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in shared
        if state[k].shape != own[k].shape
    ]
    types = [
        f"{k} {state[k].dtype} for {own[k].dtype}".replace("torch.", "")
        for k in shared
        if state[k].dtype != own[k].dtype
    ]
    if not (missing or unexpected or shapes or types):
        return
    found = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in (
            ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("of another type", types),
        )
        if items
    ]  # fmt: skip
    if 2 * (len(shared) - len(shapes)) > len(own):
        remedy = f"it was altered or saved in part: save the whole state dict of a {name}"
    else:
        remedy = "it is a checkpoint of another architecture: pass the --model that it was trained as"
    raise InputError(f"checkpoint {read.path} does not fit {name}: {'; '.join(found)}; {remedy}")
