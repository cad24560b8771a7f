"""Reading checkpoints safely and fitting them to a model, with every mismatch named.

Nothing is ever unpickled but tensors and plain containers (`weights_only=True`); safetensors files are read as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.configs import CONFIGS, PATCH, ModelConfig, get_config

StateDict = dict[str, Tensor]

# what trainers call the weights, the averaged ones first because those are what gets evaluated
EMA_KEYS = ("state_dict_ema", "model_ema")
WEIGHT_KEYS = ("model", "state_dict", "module")
# what wrappers put before every key: DistributedDataParallel, torch.compile, Lightning
PREFIXES = ("module.", "_orig_mod.", "model.")
# trained but never needed for inference; absent or present without harm
OPTIONAL_KEYS = re.compile(r"^(aux_head\.|rtsm\.)")


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read from `path`. source: which entry of the file they are. sha256: of the file's bytes."""

    path: Path
    state: StateDict
    source: str
    sha256: str


def read_checkpoint(path: str | Path, ema: bool = True) -> Checkpoint:
    """Read a PyTorch or safetensors checkpoint.

    Args:
        ema: take the averaged weights where the file has them beside the plain ones.
    Raises:
        InputError: missing, corrupt, pickled with code, without weights, or with weights that are no finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} does not exist or is not a file; give the path of a .pth or .safetensors"
        )
    if not path.stat().st_size:
        raise InputError(f"checkpoint {path} is empty; copy it again")
    content = (_read_safetensors if path.suffix.lower() == ".safetensors" else _read_torch)(path)
    state, source = _find_weights(content, path, ema)
    state = _strip_prefixes(state)
    for key, value in state.items():
        _check_values(key, value, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return Checkpoint(path, state, source, digest.hexdigest())


def _check_values(key: str, value: Tensor, path: Path) -> None:
    if not key.isprintable() or len(key) > 200:  # it would not fit on the one line of a message
        raise InputError(f"checkpoint {path} has weights named {key[:40]!r}; save the state dict of a model")
    if value.is_meta or value.is_quantized or value.is_complex() or value.layout != torch.strided:
        raise InputError(
            f"checkpoint {path} holds no plain numbers in '{key}' (a quantised, sparse, complex or empty tensor); save the float model"
        )
    if not value.is_floating_point() or key.endswith("num_batches_tracked"):
        return  # the counter of BatchNorm, which nothing reads, overflows where a whole state dict was made half
    finite = torch.isfinite(value.float())  # in float32, as it will be used
    if not finite.all():
        raise InputError(
            f"checkpoint {path} has {int((~finite).sum())} NaN or infinite values in '{key}'; its training diverged: take an earlier one"
        )


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {path} is not a readable safetensors file ({_line(error)}); copy it again"
        ) from None


def _read_torch(path: Path) -> Any:
    try:
        # official checkpoints carry their argparse.Namespace, which holds plain values only
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on formats that are refused or checked below
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({error.strerror}); check its permissions"
        ) from None
    except Exception as error:  # of corrupt bytes an unpickler may make any of them
        raise InputError(f"checkpoint {path} {_why_unreadable(error)}") from None


def _why_unreadable(error: Exception) -> str:
    """Say what is wrong with a file and what to do; torch's own message advises to load it unsafely."""
    from pickle import UnpicklingError

    text = str(error)
    if isinstance(error, UnpicklingError):
        if refused := re.search(r"GLOBAL ([\w.]+)", text):
            return (
                f"holds a pickled Python object, {refused[1]}, which could run code and is never loaded; "
                "save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
            )
        return "is not a PyTorch checkpoint; give a .pth or .safetensors of a model's weights"
    if "TorchScript" in text:
        return "is a TorchScript program; save the weights of its model: torch.save(model.state_dict(), 'weights.pth')"
    return f"is corrupt ({type(error).__name__}: {_line(error)}); copy it again"


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:120]


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _find_weights(content: Any, path: Path, ema: bool) -> tuple[StateDict, str]:
    if _is_state(content):
        return content, "state_dict"
    if isinstance(content, dict):
        for key in (*EMA_KEYS, *WEIGHT_KEYS) if ema else WEIGHT_KEYS:
            value = content.get(key)
            if _is_state(value):
                return value, key
    kinds = ", ".join(map(repr, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
    raise InputError(
        f"checkpoint {path} has no weights under {', '.join(WEIGHT_KEYS)} (found: {kinds}); save a state dict"
    )


def _strip_prefixes(state: StateDict) -> StateDict:
    weights = {k: v for k, v in state.items() if k != "n_averaged"}  # torch's AveragedModel counts its steps
    while prefix := next((p for p in PREFIXES if weights and all(k.startswith(p) for k in weights)), None):
        state = weights = {k[len(prefix) :]: v for k, v in weights.items()}
    return state


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
    side = _grid_side(position)
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


def _grid_side(position: Tensor | None) -> int | None:
    """Return the side of the square patch grid that (1, 1 + side², dim) positions are of, None where there is none."""
    if position is None or position.ndim != 3:
        return None
    side = math.isqrt(max(position.shape[1] - 1, 0))
    return side if side and side * side == position.shape[1] - 1 else None


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its weights. notes: what a user should know of how they were fitted, a sentence each."""

    model: nn.Module
    name: str
    checkpoint: Checkpoint | None
    notes: tuple[str, ...]


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    ema: bool = True,
    reverse_tsm: bool = False,
) -> LoadedModel:
    """Make the named model and load a checkpoint into it strictly; without one, random weights of seed 0.

    Class count, dist token and the tokens that the TSMs keep are read from the checkpoint. A teacher's checkpoint is
    not taken for its student: only training starts one from the other.

    Args:
        image_size: pixels of the square input, divisible by 16; the native size by default.
        num_classes: the head's outputs; the checkpoint's own, or 1000, by default.
        ema: take the averaged weights where the file has them beside the plain ones.
        reverse_tsm: make the reverse TSMs of training; those of the checkpoint, or new ones.
    Raises:
        InputError: unknown model, unreadable checkpoint, or one that does not fit: keys, shapes and remedy named.
    """
    from sit_deploy.models.registry import create_model

    config = get_config(name)
    if num_classes is not None and num_classes < 1:
        raise InputError(f"class count must be at least 1, got {num_classes}; pass --num-classes 1 or more")
    size = config.image_size if image_size is None else image_size
    options: dict[str, Any] = {"img_size": size, "reverse_tsm": reverse_tsm}
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(name, num_classes=num_classes or config.num_classes, **options)
        note = "random weights (seed 0): every accuracy is chance; give --checkpoint for a real model"
        return LoadedModel(model.eval(), config.name, None, (note,))

    read = read_checkpoint(checkpoint, ema)
    _check_architecture(read, config)
    notes = [f"{read.source} weights of {read.path.name}"]
    options["num_classes"] = _class_count(read, config, num_classes)
    options["dist_token"] = "dist_token" in read.state
    kept = _kept_of_checkpoint(read.state, config)
    if kept and kept != config.tokens(size)[1:]:
        options["kept"] = ((size // PATCH) ** 2, *kept)
    model = create_model(name, **options)
    state = filter_state_dict(read.state, model)
    _check_fit(state, model, config.name, read)
    model.load_state_dict(state)

    side = _grid_side(read.state["pos_embed"])
    height, width = model.grid_size
    if side != height:
        notes.append(
            f"positions resampled from {side}x{side} to {height}x{width} patches; check its accuracy at {size} pixels"
        )
    if "kept" in options:
        found, usual = ("/".join(map(str, tokens)) for tokens in (kept, config.tokens(size)[1:]))
        notes.append(
            f"its TSMs keep {found} tokens, not the {usual} of {config.name} at {size} pixels; check its accuracy"
        )
    if has_reverse_tsms(state) and not has_reverse_tsms(read.state):
        notes.append("its reverse TSMs are new: the checkpoint has none; train them before they are of use")
    return LoadedModel(model.eval(), config.name, read, tuple(notes))


def identify(state: StateDict) -> tuple[str, ...]:
    """Return the named models whose width, depth and slimming a state dict has.

    sit_s and sit_xs differ in where they slim alone, which shows only in where their reverse TSMs begin.
    """
    if "cls_token" not in state or state["cls_token"].ndim != 3:
        return ()
    dim = state["cls_token"].shape[-1]
    blocks, tsms, rtsms = (
        {int(k.split(".")[1]) for k in state if re.match(rf"{part}\.[0-9]{{1,3}}\.", k)}
        for part in ("blocks", "tsm", "rtsm")
    )
    return tuple(
        c.name
        for c in CONFIGS.values()
        if (c.embed_dim, c.depth, len(c.stage_blocks) - 1) == (dim, len(blocks), len(tsms))
        and (not rtsms or min(rtsms) == c.stage_blocks[0] - 1)
    )


def _check_architecture(read: Checkpoint, config: ModelConfig) -> None:
    fits = identify(read.state)
    if not fits or config.name in fits:
        return
    remedy = f"pass --model {fits[0]}" if len(fits) == 1 else "pass the --model that it was trained as"
    if config.teacher in fits:
        remedy += f": a teacher must be distilled before it can be a {config.name}"
    raise InputError(
        f"checkpoint {read.path} does not fit {config.name}: it looks like {' or '.join(fits)}; {remedy}"
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
