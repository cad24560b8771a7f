"""The extra teacher of a dist token: any classifier of timm, such as DeiT's RegNetY-160, on the student's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.data_config import DataConfig
from sit_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class CnnTeacher:
    """An extra teacher.

    Attributes:
        model: in eval mode, on the CPU.
        normalisation: gain and offset, each (1, 3, 1, 1), that take the student's normalised images to its own.
        notes: what should be known of what it sees, a sentence each.
    """

    model: nn.Module
    normalisation: tuple[Tensor, Tensor]
    notes: tuple[str, ...] = ()


def load_cnn_teacher(
    name: str, checkpoint: Path, num_classes: int, preprocessing: Preprocessing, known: Sequence[DataConfig]
) -> CnnTeacher:
    """Make a model of timm by its name and load its weights, all of them.

    Args:
        name: timm's, with or without a tag.
        checkpoint: of the weights.
        num_classes: of the data.
        preprocessing: the student's.
        known: what the checkpoint says of its own, the strongest first; timm's configuration of the name says the rest.

    Raises:
        InputError: an unknown name, weights of another model or of other classes, a model that makes no logits of
            the student's images.
    """
    if not timm.is_model(name):
        raise InputError(f"unknown CNN teacher '{name}'; take a name of timm.list_models()")
    size = preprocessing.size
    _try_size(name, num_classes, size)
    model = timm.create_model(name, num_classes=num_classes)
    state = read_checkpoint(checkpoint, names=model.state_dict()).state
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {checkpoint} does not fit {name} with {num_classes} classes "
            f"({' '.join(str(error).split())[:150]})"
        ) from None
    named = resolve_model_data_config(model)
    theirs_mean, theirs_std = (
        next((value for config in known if (value := getattr(config, part)) is not None), named[part])
        for part in ("mean", "std")
    )
    mean, std, their_mean, their_std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std, theirs_mean, theirs_std)
    )
    notes = ()
    if tuple(named["input_size"][1:]) != tuple(size):
        notes = (
            f"extra teacher {name} sees the student's {size[0]}x{size[1]} pixels, where timm's configuration of it has "
            f"{named['input_size'][1]}x{named['input_size'][2]}",
        )
    return CnnTeacher(model.eval(), (std / their_std, (mean - their_mean) / their_std), notes)


def _try_size(name: str, num_classes: int, size: tuple[int, int]) -> None:
    """Refuse a model that takes no images of the student's size, or answers with other than logits. Computes nothing."""
    try:
        with torch.device("meta"), torch.no_grad():
            answer = timm.create_model(name, num_classes=num_classes).eval()(torch.zeros(2, 3, *size))
    except (
        RuntimeError,
        AssertionError,
        ValueError,
    ) as error:  # of an unknown tag, of layers that do not fit
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"CNN teacher {name} cannot be used on images of {size[0]}x{size[1]} pixels ({reason[:150]}); take another, or "
            "another --image-size"
        ) from None
    if not isinstance(answer, Tensor) or answer.shape != (2, num_classes):
        raise InputError(f"CNN teacher {name} is no classifier; take one such as regnety_160")
