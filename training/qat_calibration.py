"""The ranges that quantization-aware training rounds with, observed on training images by every process of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor, nn

from calibration.formats import GRIDS, float16_scale
from calibration.observers import TensorObserver
from calibration.thresholds import threshold
from sit_deploy.data.datasets import Data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from training.loaders import read_sample
from training.qat import GRID, deployed_tokens, quantized_layers
from training.seeding import CALIBRATION, permutation

METHOD = "mse"


@torch.no_grad()
def calibrate(
    model: nn.Module,
    data: Data,
    preprocessing: Preprocessing,
    world: World,
    *,
    images: int,
    seed: int,
    damaged: Tensor,
    max_damaged: int,
    skip: tuple[str, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Return node name → threshold of its input, from training images under the preprocessing of evaluation.

    Every process observes its share, one image at a time, and what they saw is merged: the thresholds are the same on
    all, and those that one process alone would find.

    Args:
        model: in float, on its device. data: with images that can be chosen.
        images: how many to look at, over all processes, drawn by the seed.
        damaged, max_damaged: see `training.loaders.read_sample`, which puts the next image in place of a damaged one.
        progress: called with images done and their number, of this process.

    Raises:
        InputError: fewer images than asked for, or an activation that is no finite number.
    """
    if len(data.train) < images:
        raise InputError(
            f"{data.name} has {len(data.train)} images to train on, fewer than --qat-images {images}; pass fewer"
        )
    layers = quantized_layers(model, skip)
    observers = {nodes[0]: TensorObserver() for nodes in layers.values()}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            partial(_observe, observers[nodes[0]], deployed_tokens(model, path))
        )
        for path, nodes in layers.items()
    ]
    mode = model.training
    model.eval()
    mine = world.shard.of(permutation(len(data.train), CALIBRATION, seed)[:images])
    for done, index in enumerate(mine, 1):
        image, _ = read_sample(data.train, int(index), damaged, max_damaged)
        model(torch.from_numpy(preprocessing(image))[None].to(world.device))
        progress(done, len(mine))
    model.train(mode)
    for hook in hooks:
        hook.remove()
    shares = world.gather(observers)
    found = {}
    for nodes in layers.values():
        observer = reduce(TensorObserver.merge, (share[nodes[0]] for share in shares))
        if observer.non_finite:
            raise InputError(
                f"the input of {nodes[0]} is not finite on some training image; check the weights"
            )
        found |= dict.fromkeys(nodes, _on_scale(threshold(observer, METHOD, GRID)))
    return found


def _on_scale(limit: float) -> float:
    """Return a threshold whose scale is a float16 number, as scales in graphs are; 0 for 0."""
    largest = GRIDS[GRID].largest
    return float(float16_scale(limit / largest)) * largest if limit else 0.0


def _observe(observer: TensorObserver, first: int | None, layer: nn.Module, inputs: tuple[Tensor]) -> None:
    observer.update(inputs[0][:, :first].float().cpu().numpy())
