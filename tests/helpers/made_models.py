"""The models of a training run, made as a run makes them, of weights written here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sit_deploy.data.datasets import ArrayImages, Data
from sit_deploy.errors import InputError
from sit_deploy.models import ModelCard, get_config, save_weights
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import named_model
from training.make_models import Models, make_models
from training.recipes import Recipe
from training.request import TrainRequest
from training.task import FRDTask

SIZE = 48  # 9 patches, of which sit_nano keeps 9, 4, 2 and 1
CLASSES = ["cat", "dog", "hen"]
NO_IMAGES = ArrayImages(np.zeros((0, 8, 8), np.uint8), np.zeros(0, int))
DATA = Data("pets", NO_IMAGES, NO_IMAGES, CLASSES, 3)
RECIPE = Recipe(drop_path=0.1)
Save = Callable[..., Path]


def save_made(
    folder: Path,
    name: str = "lvvit_nano",
    num_classes: int = 3,
    card: bool = True,
    size: int = SIZE,
    classes: Any = None,
    **options: Any,
) -> Path:
    """Write a randomised model of a name as training leaves it, or as a plain checkpoint (card=False); return its path."""
    config = get_config(name)
    model = named_model(name, seed=4, img_size=size, num_classes=num_classes, **options)
    path = folder / f"{name}-{num_classes}-{len(list(folder.iterdir()))}.{'safetensors' if card else 'pth'}"
    if not card:
        torch.save({"model": model.state_dict()}, path)
        return path
    blocks = options.get("stage_blocks", config.stage_blocks)
    ratio = None if "kept" in options else config.keeping_ratio
    fields = ModelCard(
        name, blocks, ratio, tuple(model.kept), size, num_classes, Preprocessing.for_model(size),
        classes=classes,
    )  # fmt: skip
    unused = ("aux_head.", "rtsm.")
    save_weights(path, {k: v for k, v in model.state_dict().items() if not k.startswith(unused)}, fields)
    return path


def make(model: str = "sit_nano", data: Data = DATA, recipe: Recipe = RECIPE, **options: Any) -> Models:
    request = TrainRequest(model, "pets/", Path("out"), **{"image_size": SIZE, **options})
    return make_models(request, recipe, data)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        make(*args, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def state_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)["model"]


def trained_step(models: Models) -> None:
    task = FRDTask(models.model, models.teacher, torch.device("cpu"))
    images, targets = torch.randn(2, 3, SIZE, SIZE), torch.eye(3)[:2]
    loss = task(images, targets)["loss"]
    loss.backward()
    assert loss.isfinite()
