"""Reading checkpoints safely and fitting them to a model, with every mismatch named.

Nothing is ever unpickled but tensors and plain containers (`weights_only=True`); safetensors files are read as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.configs import CONFIGS, PATCH, get_config

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
        InputError: missing, corrupt, pickled with code, without tensors, or with NaN or infinite weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint {path} does not exist or is not a file; give the path of a .pth or .safetensors"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state, source = _find_weights(content, path, ema)
    state = _strip_prefixes(state)
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"checkpoint {path} has {bad} NaN or infinite values in '{key}'; its training diverged: take an earlier one"
            )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return Checkpoint(path, state, source, digest.hexdigest())


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
    from pickle import UnpicklingError

    try:
        # official checkpoints carry their argparse.Namespace, which holds plain values only
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise InputError(
                f"checkpoint {path} holds pickled Python objects, which could run code and are never loaded; "
                "save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
            ) from None
        raise InputError(
            f"checkpoint {path} is not a PyTorch checkpoint ({_line(error)}); copy or export it again"
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        raise InputError(f"checkpoint {path} is corrupt ({_line(error)}); copy it again") from None


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _find_weights(content: Any, path: Path, ema: bool) -> tuple[StateDict, str]:
    if _is_state(content):
        return content, "state_dict"
    if isinstance(content, dict):
        for key in (*EMA_KEYS, *WEIGHT_KEYS) if ema else WEIGHT_KEYS:
            value = content.get(key)
            if _is_state(value):
                return value, key
    kinds = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
    raise InputError(
        f"checkpoint {path} has no weights under {', '.join(WEIGHT_KEYS)} (found: {kinds}); save a state dict"
    )


def _strip_prefixes(state: StateDict) -> StateDict:
    while prefix := next(
        (p for p in PREFIXES if all(k.startswith(p) or k == "n_averaged" for k in state)), None
    ):
        state = {k[len(prefix) :]: v for k, v in state.items() if k != "n_averaged"}
    return state


def filter_state_dict(state: StateDict, model: nn.Module) -> StateDict:
    """Fit a state dict to `model`: resample positions, drop what inference never uses (timm's filter hook).

    Position embeddings are resampled bicubically from a square grid of another size. Reverse TSMs are dropped unless
    the model has them; an absent or unfitting aux head is replaced by the model's own, as nothing reads it.
    """
    from timm.layers import resample_abs_pos_embed

    own = model.state_dict()
    fitted = {k: v for k, v in state.items() if k in own or not OPTIONAL_KEYS.match(k)}
    for key, value in own.items():
        if key.startswith("aux_head.") and (key not in fitted or fitted[key].shape != value.shape):
            fitted[key] = value
    position = fitted.get("pos_embed")
    if position is not None and position.ndim == 3 and position.shape[1] != own["pos_embed"].shape[1]:
        side = int((position.shape[1] - 1) ** 0.5)
        if side * side == position.shape[1] - 1:
            fitted["pos_embed"] = resample_abs_pos_embed(
                position.float(), list(model.grid_size), old_size=[side, side], num_prefix_tokens=1
            )
    return {k: v.to(own[k].dtype) if k in own else v for k, v in fitted.items()}


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

    Class count, dist token and, at another image size, the tokens that the TSMs keep are read from the checkpoint.

    Args:
        image_size: pixels of the square input, divisible by 16; the native size by default.
        num_classes: the head's outputs; the checkpoint's own, or 1000, by default.
    Raises:
        InputError: unknown model, unreadable checkpoint, or one that does not fit: keys, shapes and remedy named.
    """
    from sit_deploy.models.registry import create_model

    config = get_config(name)
    if num_classes is not None and num_classes < 1:
        raise InputError(f"class count must be at least 1, got {num_classes}; pass --num-classes 1 or more")
    options: dict[str, Any] = {"img_size": image_size or config.image_size, "reverse_tsm": reverse_tsm}
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(name, num_classes=num_classes or config.num_classes, **options)
        note = "random weights (seed 0): every accuracy is chance; give --checkpoint for a real model"
        return LoadedModel(model.eval(), config.name, None, (note,))

    read = read_checkpoint(checkpoint, ema)
    notes = [f"{read.source} weights of {read.path.name}"]
    classes = read.state["head.weight"].shape[0] if "head.weight" in read.state else config.num_classes
    if num_classes is not None and num_classes != classes:
        raise InputError(
            f"checkpoint {read.path} has {classes} classes, not {num_classes}; pass --num-classes {classes} or leave it out"
        )
    options["dist_token"] = "dist_token" in read.state
    kept = _kept_of_checkpoint(read.state, config.name, options["img_size"])
    if kept:
        options["kept"] = kept
        notes.append(
            f"trained at another image size: its TSMs keep {'/'.join(map(str, kept[1:]))} tokens at "
            f"{options['img_size']} pixels too; check its accuracy there"
        )
    model = create_model(name, num_classes=classes, **options)
    state = filter_state_dict(read.state, model)
    _check_fit(state, model, config.name, read, reverse_tsm)
    model.load_state_dict(state, strict=not reverse_tsm)
    return LoadedModel(model.eval(), config.name, read, tuple(notes))


def _kept_of_checkpoint(state: StateDict, name: str, image_size: int) -> tuple[int, ...] | None:
    """Return the token schedule of a checkpoint trained at another size, None where the model's own applies."""
    config = get_config(name)
    own = config.tokens(image_size)
    position = state.get("pos_embed")
    if position is None or position.ndim != 3 or position.shape[1] == own[0] + 1:
        return None
    kept = [state[k].shape[0] for i in range(len(own) - 1) if (k := f"tsm.{i}.weight.3.bias") in state]
    if len(kept) != len(own) - 1 or not kept or tuple(kept) == own[1:]:
        return None
    return ((image_size // PATCH) ** 2, *kept)


def _check_fit(state: StateDict, model: nn.Module, name: str, read: Checkpoint, reverse_tsm: bool) -> None:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not (reverse_tsm and k.startswith("rtsm."))]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    if not (missing or unexpected or shapes):
        return
    found = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    raise InputError(
        f"checkpoint {read.path} does not fit {name}: {'; '.join(found)}; {_remedy(read.state, name)}"
    )


def _remedy(state: StateDict, name: str) -> str:
    guess = identify(state)
    if guess and guess != name:
        slimmed = (
            "; a teacher must be distilled before it can be a SiT"
            if guess == get_config(name).teacher
            else ""
        )
        return f"it looks like {guess}: pass --model {guess}{slimmed}"
    return "it is a checkpoint of another architecture: pass the --model that it was trained as"


def identify(state: StateDict) -> str | None:
    """Return the named model whose width, depth and slimming a state dict has, None where no single one fits."""
    if "cls_token" not in state or state["cls_token"].ndim != 3:
        return None
    dim = state["cls_token"].shape[-1]
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    tsms = len({k.split(".")[1] for k in state if k.startswith("tsm.")})
    fits = [
        c.name
        for c in CONFIGS.values()
        if (c.embed_dim, c.depth, len(c.stage_blocks) - 1) == (dim, depth, tsms)
    ]
    return fits[0] if len(fits) == 1 else None
