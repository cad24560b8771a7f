"""From pictures to batches: a stateless order, augmentation seeded a sample at a time, and timm's transforms around it.

timm's own loader cannot start in the middle of an epoch, and its workers draw random numbers as they come; both would
make a resumed run another run. So the order and the seeds are made here, and the rest is timm's and PyTorch's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from sit_deploy.data.damaged import USUAL_LIMIT, too_many
from sit_deploy.data.datasets import Data
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import Shard, World
from training.augment import train_transform
from training.recipes import Recipe
from training.sample_reader import SampleReader
from training.seeding import ORDER, SAMPLE, permutation, seed_all

Key = tuple[int, int, int]  # epoch, place in the epoch, index of the image


class TrainOrder(Sampler[list[Key]]):
    """Batches of keys of one process, from any step of any epoch on.

    Every epoch is one permutation of the images, each repeated `repeats` times running. A step takes the next
    `batch · accumulate · world size` places; process r takes every (world size)-th from place r on, so that views of an
    image fall on different processes, and a step's images are the same however many processes share them.
    """

    def __init__(self, images: int, recipe: Recipe, accumulate: int, shard: Shard, seed: int) -> None:
        self.images, self.recipe, self.shard, self.seed = images, recipe, shard, seed
        self.accumulate = accumulate
        self.epoch = self.start = 0
        total = recipe.batch_size * accumulate * shard.size
        self.steps = images // total
        if not self.steps:
            raise InputError(
                f"{images} images are fewer than the {total} of one step; pass a smaller --batch-size"
                + (" or --accumulate" if accumulate > 1 else "")
            )

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Start the next iteration at step `start` of `epoch`."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        total = self.recipe.batch_size * self.shard.size
        taken = -(-self.steps * self.accumulate * total // self.recipe.repeats)
        order = permutation(self.images, ORDER, self.seed, self.epoch)[:taken].repeat(self.recipe.repeats)
        for batch in range(self.start * self.accumulate, self.steps * self.accumulate):
            places = self.shard.of(range(batch * total, (batch + 1) * total))
            yield [(self.epoch, place, int(order[place])) for place in places]


class Augmented(Dataset):
    """Training samples, augmented with randomness of their own: key → (image, label).

    An image that cannot be read or augmented gives way to the next one, seeded the same, and is counted once, in
    `damaged`, which all workers share.
    """

    def __init__(self, samples: Any, transform: Callable, seed: int, limit: int) -> None:
        self.reader, self.transform, self.seed = SampleReader(samples, limit), transform, seed
        self.damaged = self.reader.damaged

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: Key) -> tuple[Any, int]:
        epoch, place, index = key

        def augment(image: Any) -> Any:
            seed_all(SAMPLE, self.seed, epoch, place)
            return self.transform(image)

        return self.reader.read(index, augment)


class HeldOut(Dataset):
    """Validation samples under the preprocessing of the deployed model; label -1 marks a damaged image."""

    def __init__(self, samples: Any, preprocessing: Preprocessing, limit: int) -> None:
        self.samples, self.preprocessing = samples, preprocessing
        self.reader = SampleReader(samples, limit)
        self.damaged = self.reader.damaged

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image, label = self.samples[index]
            return torch.from_numpy(self.preprocessing(image)), label
        except Exception as error:  # of any type, from a decoder
            self.reader.note_damaged(index, error, "read")
            return torch.zeros(3, *self.preprocessing.size), -1


@dataclass(frozen=True)
class Loaders:
    """The batches of a run, and what could not be read.

    Attributes:
        train: batches (images float (B, 3, H, W), labels (B,)) on the device, of this process; set `order` before an epoch.
        val: the same of held-out images, each on one process only.
        order: None where the data is streamed.
        steps: of an epoch.
        damaged: flags of the images of train and of val that could not be read or augmented on this process, bool (n,); of
            streamed data, which has no numbers, counts, int64 (1,).
    """

    train: Any
    val: Any
    order: TrainOrder | None
    steps: int
    damaged: tuple[Tensor, ...]


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are loaded.

    Attributes:
        accumulate: batches a step.
        workers: processes that decode, for each of the two loaders.
        seed: of the order of the images, and of their augmentation.
        max_damaged: images that may be unreadable.
    """

    accumulate: int = 1
    workers: int = 0
    seed: int = 0
    max_damaged: int = USUAL_LIMIT


def make_loaders(
    data: Data,
    recipe: Recipe,
    preprocessing: Preprocessing,
    world: World,
    options: LoaderOptions | None = None,
) -> Loaders:
    """Make the batches of training and validation.

    Args:
        data: the samples.
        recipe: the batch size, and how images are augmented.
        preprocessing: of evaluation, and with its mean, std and orientation of training.
        world: the processes that share the images.
        options: the usual ones, if there are none.

    Raises:
        InputError: fewer images than a step takes, or no image to validate on.
    """
    options = options or LoaderOptions()
    transform = train_transform(recipe, preprocessing, on_device=world.device.type == "cuda")
    if data.streamed:
        return _streamed_loaders(data, recipe, preprocessing, transform, world, options)
    if not len(data.train) or not len(data.val):
        raise InputError(
            f"{data.name} has no images to {'train' if len(data.val) else 'validate'} on; add some"
        )
    order = TrainOrder(len(data.train), recipe, options.accumulate, world.shard, options.seed)
    augmented = Augmented(data.train, transform, options.seed, options.max_damaged)
    held_out = HeldOut(data.val, preprocessing, options.max_damaged)
    common = {
        "num_workers": options.workers,
        "pin_memory": world.device.type == "cuda",
        "persistent_workers": options.workers > 0,
        "worker_init_fn": _own_group if options.workers else None,
    }
    train = DataLoader(augmented, batch_sampler=order, collate_fn=_collate(world), **common)
    mine = world.shard.of(range(len(held_out)))
    val = DataLoader(held_out, batch_size=recipe.batch_size, sampler=mine, **common)
    return Loaders(
        _on_device(train, preprocessing, world),
        val,
        order,
        order.steps,
        (augmented.damaged, held_out.damaged),
    )


def _own_group(_: int) -> None:
    """Keep Ctrl-C, and what torchrun sends to a process group, from a worker: it is needed until the state is saved."""
    os.setpgrp()


def _collate(world: World) -> Callable | None:
    if world.device.type != "cuda":
        return None
    from timm.data.loader import fast_collate

    return fast_collate


def _on_device(loader: Any, preprocessing: Preprocessing, world: World) -> Any:
    """Normalise on the GPU, beside the step before; on a CPU the transform has done it."""
    if world.device.type != "cuda":
        return loader
    from timm.data.loader import PrefetchLoader

    return PrefetchLoader(loader, preprocessing.mean, preprocessing.std, device=world.device)


def _streamed_loaders(
    data: Data,
    recipe: Recipe,
    preprocessing: Preprocessing,
    transform: Callable,
    world: World,
    options: LoaderOptions,
) -> Loaders:
    """Batches of data that can only be read in its own order: shuffled and shared out by timm's reader."""
    on_device = world.device.type == "cuda"
    guards = (
        _Guarded(transform, partial(_plain_view, preprocessing, on_device), options.max_damaged),
        _Guarded(partial(_preprocess, preprocessing), _nothing, options.max_damaged),
    )
    data.train.transform, data.val.transform = guards
    images = data.train.reader.num_samples
    steps = images // (recipe.batch_size * options.accumulate * world.size)
    if not steps:
        raise InputError(f"{images} images are fewer than one step takes; pass a smaller --batch-size")
    # so that every worker gives whole batches, and enough of them
    data.train.reader.batch_size = recipe.batch_size
    common = {
        "batch_size": recipe.batch_size,
        "num_workers": min(options.workers, _workers_with_shards(data, world)),
        "pin_memory": on_device,
        "worker_init_fn": _own_group if options.workers else None,
    }
    train = DataLoader(data.train, collate_fn=_collate(world), drop_last=True, **common)
    val = DataLoader(_Share(data.val, world.shard, preprocessing), **common)
    damaged = tuple(guard.count for guard in guards)
    return Loaders(_on_device(train, preprocessing, world), val, None, steps, damaged)


class _Guarded:
    """A transform of streamed images that does `instead` where the image makes it fail, and counts how often."""

    def __init__(self, transform: Callable, instead: Callable, limit: int) -> None:
        self.transform, self.instead, self.limit = transform, instead, limit
        self.count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __call__(self, image: Any) -> Any:
        try:
            return self.transform(image)
        except Exception as error:  # of any type, from a decoder or an operation
            self.count += 1
            if int(self.count) > self.limit:
                raise too_many(int(self.count), "read or augmented", self.limit, "", error) from None
            return self.instead(image)


def _plain_view(preprocessing: Preprocessing, on_device: bool, image: Any) -> Any:
    """Return an image that cannot be augmented as evaluation looks at it, in the form of `train_transform`."""
    if on_device:
        return np.moveaxis(preprocessing.pixels(image), -1, 0)
    return _preprocess(preprocessing, image)


def _nothing(_: Any) -> None:
    """A held-out image that cannot be looked at: `_Share` leaves it out of what is counted."""


def _workers_with_shards(data: Data, world: World) -> int:
    """Return how many workers of a process can have data: those of WebDataset take whole shards, others any part."""
    if not data.name.lower().startswith("wds/"):
        return sys.maxsize
    shards = len(data.train.reader.split_info.filenames)
    if shards < world.size:
        raise InputError(
            f"{data.name} has {shards} shards for {world.size} processes; split it into more, or start fewer processes"
        )
    return shards // world.size


class _Share(IterableDataset):
    """A process's share of streamed held-out samples: every (world size)-th, so that each is counted once.

    timm's readers share out whole shards and then repeat or leave out samples, for all processes to have as many.
    """

    def __init__(self, samples: Any, shard: Shard, preprocessing: Preprocessing) -> None:
        samples.reader.dist_rank, samples.reader.dist_num_replicas = 0, 1
        self.samples, self.shard, self.preprocessing = samples, shard, preprocessing

    def __len__(self) -> int:
        return -(-len(self.samples) // self.shard.size)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for image, label in islice(iter(self.samples), self.shard.rank, None, self.shard.size):
            if image is None:
                yield torch.zeros(3, *self.preprocessing.size), -1
            else:
                yield image, label


def _preprocess(preprocessing: Preprocessing, image: Any) -> Tensor:
    return torch.from_numpy(preprocessing(image))


def gather_damaged(loaders: Loaders, world: World) -> list[Tensor]:
    """Return `Loaders.damaged` over all processes, on the CPU; every process must ask."""
    totals = []
    for part in loaders.damaged:
        total = world.sum(part.to(world.device, torch.int64)).cpu()
        totals.append(total > 0 if part.dtype == torch.bool else total)
    return totals


def count_damaged(loaders: Loaders, world: World) -> int:
    """Return how many images could not be read or augmented so far, on any process."""
    return sum(int(part.sum()) for part in gather_damaged(loaders, world))


def restore_damaged(loaders: Loaders, parts: list[Tensor], world: World) -> None:
    """Go on counting from what `gather_damaged` gave; counts are one process's, flags may be every process's."""
    for own, part in zip(loaders.damaged, parts, strict=True):
        if own.dtype == torch.bool or world.is_main:
            own.copy_(part)
