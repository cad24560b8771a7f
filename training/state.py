"""The state of a run on disk: everything that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sit_deploy.errors import InputError

SCHEMA = 1
LAST = "last.pt"


@dataclass
class Position:
    """Where a run is.

    epoch, step: of the next step to take. best: metrics of the best epoch so far. sums: losses summed over the steps since
    the start of the epoch; window, window_steps: since the last row of the log, and how many steps. log_bytes: length of
    the log that belongs to it. seconds: spent training.
    """

    epoch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    log_bytes: int = 0
    seconds: float = 0.0


def save_state(path: Path, run: dict[str, Any], position: Position, parts: dict[str, Any]) -> None:
    """Write a run's state so that whatever happens meanwhile, `path` is the old file or the new one, whole.

    Random numbers follow from the seed and the position (`training.seeding`), so these are the generators' state.

    Args:
        run: what the run is, as JSON values; a state is resumed by the same run only.
        parts: name → object with a state_dict (model, EMA, optimiser, schedule, gradient scaler).
    Raises:
        InputError: the disk is full or not writable; the old file is untouched.
    """
    content = {
        "schema": SCHEMA,
        "run": json.dumps(run, sort_keys=True),
        "position": vars(position),
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # of a full disk, torch's writer makes a RuntimeError
        for cause in (error, error.__context__):
            if str(cause).startswith(
                "DataLoader worker"
            ):  # it died, which PyTorch says wherever we happen to be
                raise cause from None
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(
            f"cannot write {path} ({reason}); free some space, then go on with --resume"
        ) from None
    finally:  # after Ctrl-C too
        temporary.unlink(missing_ok=True)


def read_state(path: Path, run: dict[str, Any]) -> tuple[Position, dict[str, Any]]:
    """Read what `save_state` wrote: the position and the parts' state dicts.

    Raises:
        InputError: corrupt, of another version, or of another run: what differs is named.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        schema, before = content["schema"], json.loads(content["run"])
        position, parts = Position(**content["position"]), content["parts"]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except Exception as error:  # of corrupt bytes an unpickler may make any of them
        raise InputError(
            f"{path} is not the state of a training run ({type(error).__name__}); remove it to start anew"
        ) from None
    if schema != SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, and {SCHEMA} is known here; use the version that wrote it"
        )
    changed = [k for k in sorted({*run, *before}) if run.get(k) != before.get(k)]
    if changed:
        what = ", ".join(f"{k} was {_short(before.get(k))} and is {_short(run.get(k))}" for k in changed[:3])
        raise InputError(
            f"{path} is of another run: {what}; resume with the options it was started with, or choose another -o"
        )
    return position, parts


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def restore(parts: dict[str, Any], states: dict[str, Any]) -> None:
    """Load state dicts into the parts of the same names."""
    for name, part in parts.items():
        part.load_state_dict(states[name])
