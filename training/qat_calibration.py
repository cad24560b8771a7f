"""The ranges that quantization-aware training rounds with, observed on training images by every process of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn

from calibration.formats import GRIDS, float16_scale
from calibration.observers import TensorObserver
from calibration.thresholds import threshold
from sit_deploy.data.datasets import Data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from training.qat import GRID, deployed_tokens, quantized_layers
from training.sample_reader import SampleReader
from training.seeding import CALIBRATION, permutation

METHOD = "mse"


def choose_images(data: Data, images: int, seed: int) -> np.ndarray:
    """Return the numbers of the images to calibrate on, int64 (images,): drawn by the seed, the same on all processes.

    Raises:
        InputError: fewer images than asked for.
    """
    if len(data.train) < images:
        raise InputError(
            f"{data.name} has {len(data.train)} images to train on, fewer than --qat-images {images}; pass fewer"
        )
    return permutation(len(data.train), CALIBRATION, seed)[:images]


@torch.no_grad()
def calibrate(
    model: nn.Module,
    samples: SampleReader,
    chosen: np.ndarray,
    preprocessing: Preprocessing,
    world: World,
    skip: tuple[str, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Return node name → threshold of its input, from training images under the preprocessing of evaluation.

    Every process observes its share, one image at a time, and what they saw is merged: the thresholds are the same on
    all, and those that one process alone would find.

    Args:
        model: in float, on its device.
        samples: those to train on; the next one takes the place of a damaged one.
        chosen: numbers of the images to look at, over all processes; see `choose_images`.
        preprocessing: of evaluation.
        world: the processes that share the images.
        skip: patterns of node names that stay in float.
        progress: called with images done and their number, of this process.

    Raises:
        InputError: an activation that is no finite number, or more damaged images than may be.
    """
    # one of the layers that are deployed as one: they see the same
    layers = {nodes: path for path, nodes in quantized_layers(model, skip).items()}
    observers = {nodes[0]: TensorObserver() for nodes in layers}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            partial(_observe, observers[nodes[0]], deployed_tokens(model, path))
        )
        for nodes, path in layers.items()
    ]
    mode = model.training
    model.eval()
    mine = world.shard.of(chosen)
    for done, index in enumerate(mine, 1):
        image, _ = samples.read(int(index))
        model(torch.from_numpy(preprocessing(image))[None].to(world.device))
        progress(done, len(mine))
    model.train(mode)
    for hook in hooks:
        hook.remove()
    shares = world.gather(observers)
    limits = {}
    for nodes in layers:
        observer = reduce(TensorObserver.merge, (share[nodes[0]] for share in shares))
        if observer.non_finite:
            raise InputError(
                f"the input of {nodes[0]} is not finite on some training image; check the weights"
            )
        limits |= dict.fromkeys(nodes, _on_scale(threshold(observer, METHOD, GRID)))
    return limits


def _on_scale(limit: float) -> float:
    """Return a threshold whose scale is a float16 number, as scales in graphs are; 0 for 0."""
    largest = GRIDS[GRID].largest
    return float(float16_scale(limit / largest)) * largest if limit else 0.0


def _observe(observer: TensorObserver, first: int | None, layer: nn.Module, inputs: tuple[Tensor]) -> None:
    observer.update(inputs[0][:, :first].float().cpu().numpy())
