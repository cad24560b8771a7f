"""What to build of new weights: commands that work on this machine, for what it has, and for GPUs beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.base import Engine

# by how much people expect of them where a CPU has them; FP16 is computed in FP32 there
_FASTEST_FIRST = ("bf16", "fp32")
MAX_DROP = "0.5"  # points of top-1 that INT8 may cost


@dataclass(frozen=True)
class NextCommand:
    """A command that can be pasted, and what it is for."""

    what: str
    line: str


@dataclass(frozen=True)
class NewWeights:
    """A checkpoint with a model card, and the images there are of its kind.

    Attributes:
        path: the file.
        rounded: it was trained with INT8's rounding, so its ranges are known.
        calibration: folder of images to calibrate INT8 on, None where there is none.
        labelled: folder of labelled images to hold INT8 to its accuracy, likewise.
    """

    path: Path
    rounded: bool = False
    calibration: Path | None = None
    labelled: Path | None = None


def next_builds(weights: NewWeights) -> tuple[NextCommand, ...]:
    """Return what builds an engine that runs here, INT8 where it is worth trying, and an engine for GPUs if that can be built here."""
    import engines

    answers = [(engines.get(one.kind), one) for one in engines.support()]
    here = [engine for engine, answer in answers if answer.can_build and answer.can_run]
    gpus = [engine for engine, answer in answers if answer.can_build and not engine.on_cpu]
    on_gpu = [engine for engine in gpus if engine in here]
    commands = [_gpu("on the GPU here", on_gpu[0], weights)] if on_gpu else _cpu(here, weights)
    if gpus and not on_gpu:
        commands.append(_gpu("for NVIDIA GPUs (built here, to run there)", gpus[0], weights))
    return tuple(commands)


def _gpu(what: str, engine: Engine, weights: NewWeights) -> NextCommand:
    return _build(what, weights, engine, "int8" if weights.rounded else "fp16")


def _cpu(here: Iterable[Engine], weights: NewWeights) -> list[NextCommand]:
    engines_of = [engine for engine in here if engine.on_cpu]
    if not engines_of:
        return []
    if weights.rounded:
        return [_build("on this CPU", weights, _first(engines_of, "int8") or engines_of[0], "int8")]
    precision = next(one for one in _FASTEST_FIRST if _first(engines_of, one))
    best = max((e for e in engines_of if _has(e, precision)), key=lambda engine: len(engine.precisions))
    commands = [_build(f"on this CPU, in {precision.upper()}", weights, best, precision)]
    int8 = best if _has(best, "int8") else _first(engines_of, "int8")
    if weights.calibration is not None and int8 is not None:
        commands.append(_build("on this CPU, in as much INT8 as is faster", weights, int8, "int8"))
    return commands


def _first(some: Iterable[Engine], precision: str) -> Engine | None:
    return next((engine for engine in some if _has(engine, precision)), None)


def _has(engine: Engine, precision: str) -> bool:
    return precision in engine.precisions and engine.lacks(precision) is None


def _build(what: str, weights: NewWeights, engine: Engine, precision: str) -> NextCommand:
    words = [
        "sit-deploy",
        "build",
        "--checkpoint",
        str(weights.path),
        "--engine",
        engine.kind,
        "--precision",
        precision,
    ]
    if precision == "int8" and not weights.rounded:
        words += ["--calib-data", str(weights.calibration)]
        if weights.labelled is not None:
            words += ["--val-data", str(weights.labelled), "--max-accuracy-drop", MAX_DROP]
    return NextCommand(what, shlex.join(words))
