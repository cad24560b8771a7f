"""What a picture goes through before it is trained on: crop, mirroring, timm's augmentation policies, mixup and CutMix.

timm asks Pillow for posterize with 0 bits and fewer, at some magnitudes of most policies: Pillow up to 12 gave a black
image, Pillow 13 raises ValueError. Here every policy gives what it gave.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from training.recipes import Recipe

# operations a picture that a policy may chain: with more, an image takes seconds
MOST_OPERATIONS = 100


def train_transform(recipe: Recipe, preprocessing: Preprocessing, on_device: bool) -> Callable:
    """Return the augmentation: Pillow image → float tensor (3, H, W), normalised; uint8 array where the device does that.

    Raises:
        InputError: a policy that timm does not know, or that cannot be applied to a picture.
    """
    from timm.data import create_transform
    from torchvision import transforms

    try:
        transform = create_transform(
            (3, *preprocessing.size),
            is_training=True,
            use_prefetcher=on_device,
            scale=(recipe.min_scale, 1.0),
            ratio=(recipe.min_ratio, 1 / recipe.min_ratio),
            hflip=recipe.flip,
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment or None,
            interpolation="bicubic",
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=0.0 if on_device else recipe.erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError):  # of a policy; all else has been checked
        raise InputError(
            f"--auto-augment '{recipe.auto_augment}' is no policy of timm; pass for example rand-m9-mstd0.5-inc1, or ''"
        ) from None
    for step in transform.transforms:
        if _operations_of(step):
            _mend(step)
            _try(step, recipe.auto_augment)
    if recipe.rotation:  # before the crop, which then cuts the corners off that a rotation leaves empty
        bilinear = transforms.InterpolationMode.BILINEAR
        transform.transforms.insert(0, transforms.RandomRotation(recipe.rotation, interpolation=bilinear))
    transform.transforms.insert(0, preprocessing.upright)
    return transform


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Return an image with the highest bits of every value kept: none of them for 0 and below, which is black."""
    from timm.data import auto_augment

    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)


def operations(transform: Any) -> Iterator[Any]:
    """Yield every operation of the policies in a transform of `train_transform`."""
    for step in transform.transforms:
        yield from _operations_of(step)


def _operations_of(step: Any) -> list[Any]:
    """Return the operations of a policy: RandAugment and AugMix have a list of them, AutoAugment one a sub-policy."""
    flat = list(getattr(step, "ops", ()))
    return flat + [operation for chain in getattr(step, "policy", ()) for operation in chain]


def _mend(policy: Any) -> None:
    from timm.data import auto_augment

    for operation in _operations_of(policy):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize


def _try(policy: Any, name: str) -> None:
    """Refuse a policy that no picture can go through, such as one that draws more operations than it has.

    Raises:
        InputError: says what timm says of it.
    """
    lengths = (getattr(policy, "num_layers", 1), getattr(policy, "width", 1), getattr(policy, "depth", 1))
    if max(lengths) > MOST_OPERATIONS:
        raise InputError(
            f"--auto-augment '{name}' chains {max(lengths)} operations; pass at most {MOST_OPERATIONS}"
        )
    states = random.getstate(), np.random.get_state()
    try:
        policy(Image.new("RGB", (32, 32), (90, 120, 150)))
    except Exception as error:  # of any type: of NumPy's draws, of Pillow's operations
        raise InputError(
            f"--auto-augment '{name}' cannot be applied to a picture ({' '.join(str(error).split())[:150]}); "
            "pass for example rand-m9-mstd0.5-inc1, or ''"
        ) from None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def make_mixing(
    recipe: Recipe, num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what turns (images, labels (B,)) into (mixed images, soft targets (B, classes) float).

    On a GPU it erases too, which on a CPU is the transform's: here, and not in a loader that runs ahead, the random numbers
    are those of the step.
    """
    from timm.data import Mixup
    from timm.data.mixup import mixup_target
    from timm.data.random_erasing import RandomErasing

    erase: Callable[[Tensor], Tensor] = lambda images: images  # noqa: E731
    if recipe.erasing and device.type == "cuda":
        erase = RandomErasing(recipe.erasing, mode="pixel", device=device)
    if recipe.mixup or recipe.cutmix:
        mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)
        return lambda images, labels: mixup(erase(images), labels)
    return lambda images, labels: (erase(images), mixup_target(labels, num_classes, 1.0, recipe.smoothing))
