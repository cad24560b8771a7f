"""The state of a run on disk: everything that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta

from engines.strict_json import parse
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.schema import check
from training.run_files import LAST
from training.worker_errors import is_dead_worker

SCHEMA = 1


_Step = Annotated[int, Meta(ge=0, le=limits.STEPS)]
_Sum = Annotated[float, Meta(ge=-limits.INTEGER, le=limits.INTEGER)]


@dataclass
class Position:
    """Where a run is.

    Attributes:
        epoch, step: of the next step to take.
        best: metrics of the best epoch so far.
        sums: losses summed over the steps since the start of the epoch.
        window, window_steps: since the last row of the log, and how many steps.
        log_bytes: length of the log that belongs to it.
        seconds: spent training.
        fitted: steps that the TSMs were fitted for before the first one (`training.warm_start`).
        fit: what that did (`training.slim_fit.Fit`); empty in states of older versions.
    """

    epoch: _Step = 0
    step: _Step = 0
    best: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, _Sum] = field(default_factory=dict)
    window: dict[str, _Sum] = field(default_factory=dict)
    window_steps: _Step = 0
    log_bytes: Annotated[int, Meta(ge=0, le=limits.INTEGER)] = 0
    seconds: Annotated[float, Meta(ge=0, le=limits.INTEGER)] = 0.0
    fitted: _Step = 0
    fit: dict[str, _Sum] = field(default_factory=dict)

    def require_within(self, path: Path, epochs: int, steps: int) -> None:
        """Refuse a position that a run cannot have come to.

        Args:
            path: the file that it was read from.
            epochs: of the whole run.
            steps: of an epoch.

        Raises:
            InputError: past its end, or past an epoch's; or epochs done, and none the best.
        """
        if self.epoch > epochs or self.step > (steps if self.epoch < epochs else 0):
            raise InputError(
                f"{path} says that step {self.step} of epoch {self.epoch + 1} is next, and the run has {epochs} epochs of "
                f"{steps} steps; remove it to start anew"
            )
        kinds = {"epoch": int, "top1": float, "loss": float}
        if self.epoch and not all(isinstance(self.best.get(key), kind) for key, kind in kinds.items()):
            raise InputError(f"{path} does not say which of its epochs was the best; remove it to start anew")


def save_state(path: Path, run: dict[str, Any], position: Position, parts: dict[str, Any]) -> None:
    """Write a run's state so that whatever happens meanwhile, `path` is the old file or the new one, whole.

    Random numbers follow from the seed and the position (`training.seeding`), so these are the generators' state.

    Args:
        path: of the file.
        run: what the run is, as JSON values; a state is resumed by the same run only.
        position: where the run is.
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
            if is_dead_worker(cause):
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
        schema, before = content["schema"], parse(content["run"])
        position, parts = content["position"], content["parts"]
        if not isinstance(before, dict) or not isinstance(parts, dict):
            raise TypeError
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
    return check(position, Position, f"{path}, position", "remove it to start anew"), parts


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def restore(parts: dict[str, Any], states: dict[str, Any], path: Path = Path(LAST)) -> None:
    """Load state dicts into the parts of the same names.

    Raises:
        InputError: they are of other parts, or hold NaN or infinity; `path` is named.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(states[name])
        # what a state dict of something else makes depends on the part: ours, PyTorch's, timm's
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).strip().splitlines()[:1]
            raise InputError(
                f"{path} does not fit this run: {name} ({type(error).__name__}: {', '.join(reason)[:200]}); remove it to "
                "start anew"
            ) from None
        if bad := _not_finite(part.state_dict()):
            raise InputError(f"{path} holds NaN or infinity: {name}, {bad}; remove it to start anew")


def _not_finite(state: Any, at: str = "") -> str | None:
    """Return the name of the first tensor of floats in a state dict, however deep, that is not finite."""
    if isinstance(state, torch.Tensor):
        return None if not state.is_floating_point() or bool(torch.isfinite(state).all()) else at
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    names = (_not_finite(value, f"{at}.{key}" if at else str(key)) for key, value in pairs)
    return next(filter(None, names), None)
