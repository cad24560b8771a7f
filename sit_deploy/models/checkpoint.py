"""Reading checkpoint files safely.

Nothing is ever unpickled but tensors and plain containers (`weights_only=True`); safetensors files are read as they are.
"""

from __future__ import annotations

import argparse
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.hashing import sha256

StateDict = dict[str, Tensor]

# what trainers call the weights, the averaged ones first because those are what gets evaluated
EMA_KEYS = ("state_dict_ema", "model_ema")
WEIGHT_KEYS = ("model", "state_dict", "module")
# what wrappers put before every key: DistributedDataParallel, torch.compile, Lightning
PREFIXES = ("module.", "_orig_mod.", "model.")


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
        InputError: missing, unreadable, corrupt, pickled with code, without weights, or with weights that are no finite numbers.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(
                f"checkpoint {path} does not exist or is not a file; give the path of a .pth or .safetensors"
            )
        if not path.stat().st_size:
            raise InputError(f"checkpoint {path} is empty; copy it again")
        digest = sha256(path)
    except OSError as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({error.strerror}); check its path and its permissions"
        ) from None
    content = (_read_safetensors if path.suffix.lower() == ".safetensors" else _read_torch)(path)
    state, source = _find_weights(content, path, ema)
    state = _strip_prefixes(state)
    for key, value in state.items():
        _check_values(key, value, path)
    return Checkpoint(path, state, source, digest)


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
