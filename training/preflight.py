"""What can go wrong at the end of a run, looked at before its first step."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.cpu import cpu_count, usable_cpus
from sit_deploy.data.datasets import Data
from sit_deploy.data.overlap import find_same_images
from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard
from sit_deploy.text import file_size, shown
from training.best_weights import weights_of
from training.run_files import LAST, WEIGHTS

_WORKERS_A_CPU = 2  # they wait for disks too


def check_card(card: ModelCard) -> None:
    """Refuse what a model card cannot hold.

    Raises:
        InputError: a class whose name is no UTF-8, or another value that is no JSON.
    """
    for name in card.classes or ():
        if not _is_text(name):
            raise InputError(
                f"the name of class {name!a} is no UTF-8, which no model card can hold; rename its folder"
            )
    try:
        json.dumps(card.to_dict(), ensure_ascii=False, allow_nan=False).encode()
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise InputError(f"the model card cannot be written ({error}); check the options") from None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_space(folder: Path, model: nn.Module, averaged: bool) -> None:
    """Refuse a disk that has not room for the weights and the state, roughly.

    Each is written beside the one before. A state has the weights, AdamW's two moments, and the averaged weights.

    Raises:
        InputError: says what is free and what it takes.
    """
    weights = sum(map(_bytes, weights_of(model.state_dict()).values()))
    whole = sum(map(_bytes, model.state_dict().values()))
    state = whole * (2 if averaged else 1) + 2 * sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    there = sum((folder / name).stat().st_size for name in (WEIGHTS, LAST) if (folder / name).exists())
    needed = 2 * (weights + state) - there
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # of a file system that does not tell
        return
    if free < needed:
        raise InputError(
            f"{folder} has {file_size(free)} free, and the weights and the state of this run take about "
            f"{file_size(needed)}; free some space, or choose another -o"
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def warn_of_one_class(data: Data) -> list[str]:
    """Return warnings of parts whose images are all of one class: any model that says it is always right."""
    warnings = []
    for part, what in ((data.train, "to train on"), (data.val, "held out")):
        labels = getattr(part, "labels", None)
        if labels is not None and len(labels) and len(set(map(int, labels))) == 1:
            name = data.classes[int(labels[0])] if data.classes else int(labels[0])
            warnings.append(
                f"all {len(labels)} images {what} are of one class, {name}: accuracy says nothing"
            )
    return warnings


def warn_of_training_images(data: Data) -> list[str]:
    """Return a warning of held-out files that are trained on too, told by class, name and content: their top-1 is no proof."""
    held_out, train = (getattr(part, "samples", None) or () for part in (data.val, data.train))
    same = find_same_images(held_out, train)
    if not same:
        return []
    return [
        f"{len(same)} of {len(held_out)} images held out are trained on too ({shown(same[0])}, ...): accuracy says little; hold "
        "out others"
    ]


def warn_of_threads(device: torch.device, workers: int = 0) -> list[str]:
    """Return a warning where what computes here is more than the CPUs that it may use, and the setting that mends it.

    OpenMP's threads wait for one another, spinning, at the end of every product: where they have no CPU each, a step takes many times
    as long. By default there are as many as CPUs, which takes no notice of a container's limit, and each process has its own.

    Args:
        device: that is computed on; on a GPU threads have little to do.
        workers: processes that decode images, of each process of training; each of them has one thread.
    """
    cpus = cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = torch.get_num_threads()
    of = f" of {processes} processes" if processes > 1 else ""
    if device.type == "cpu" and processes * threads > cpus:
        each = cpus // processes
        remedy = f"OMP_NUM_THREADS={each} in the environment" if each else f"--nproc-per-node {cpus}"
        return [
            f"{processes * threads} threads{of} compute on {_cpus(cpus)}, which can take many times as long; start again with {remedy}"
        ]
    if processes * workers > _WORKERS_A_CPU * cpus:
        return [
            f"{processes * workers} workers{of} decode images on {_cpus(cpus)}; pass --workers {max(1, cpus // processes)}"
        ]
    return []


def _cpus(count: int) -> str:
    """Name the CPUs that may be used, and what keeps from more."""
    here = len(usable_cpus() or range(os.cpu_count() or 1))
    limit = f" (the limit of this container or control group; {here} are there)" if here > count else ""
    return f"{count} CPU{'s' * (count > 1)}{limit}"
