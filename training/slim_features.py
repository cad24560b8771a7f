"""What a frozen backbone makes of images, up to a model's first TSM and without any: computed once, kept as far as memory allows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engines.cpu import cpu_count
from sit_deploy.errors import InputError
from sit_deploy.models import FRDOutput
from sit_deploy.models.rotary import Rotary
from sit_deploy.preprocessing import Preprocessing
from training.sample_reader import SampleReader

CACHE_BYTES = 1 << 30
_LEAST_AREA = 0.75  # of a part of an image
_DECODERS = 16  # threads at most; Pillow lets others run while it decodes


@dataclass(frozen=True)
class Features:
    """What fitting needs of images, on the model's device. N: tokens before the first TSM; blocks: those behind it.

    Attributes:
        tokens: (B, N, dim) as the first TSM takes them, prefix tokens first.
        logits: (B, classes) of the unslimmed model.
        summaries: (B, blocks, rows, dim) of its tokens behind each block (`summaries_of`).
    """

    tokens: Tensor
    logits: Tensor
    summaries: Tensor


def mean_logits(output: FRDOutput) -> Tensor:
    """Return the logits (B, classes) that are deployed: with a dist token, the mean of both heads'."""
    return output.logits if output.dist_logits is None else (output.logits + output.dist_logits) / 2


def summaries_of(output: FRDOutput, model: nn.Module) -> Tensor:
    """Return what each block behind the first TSM made of an image, whatever the number of patch tokens: (B, blocks, rows, dim).

    The rows are the prefix tokens (class, dist, registers) and, where the head reads the patch tokens, the mean of these.
    """
    n, reads_patches = model.num_prefix_tokens, getattr(model, "global_pool", "token") != "token"
    behind = output.tokens[1:]
    parts = [x[:, :n] for x in behind]
    if reads_patches or not n:
        parts = [
            torch.cat((p, x[:, n:].mean(1, keepdim=True)), 1) for p, x in zip(parts, behind, strict=True)
        ]
    return torch.stack(parts, dim=1)


def unslimmed(model: nn.Module) -> nn.Module:
    """Return the model without its TSMs; all weights are the same tensors."""
    twin = copy.copy(model)
    twin.slim_after = {}
    return twin


def part_of(image: Image.Image, seed: int) -> Image.Image:
    """Return a random part of an image, of its shape and at its size: at least three quarters of its area."""
    draw = np.random.default_rng(seed)
    side = draw.uniform(_LEAST_AREA, 1) ** 0.5
    lengths = [side * length for length in image.size]
    left, top = (draw.uniform(0, whole - part) for whole, part in zip(image.size, lengths, strict=True))
    box = (left, top, left + lengths[0], top + lengths[1])
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


class FrozenFeatures:
    """The features of images by a model whose backbone does not change; for use as a context, which ends its threads.

    Args:
        model: in eval mode, with a TSM at least.
        reader: its images; one that cannot be read gives way to the next.
        preprocessing: of evaluation.
        views: of each image: the first as evaluation looks at it, others of parts of it (`part_of`); each has a number of its own, from
            view · images on.
        cache_bytes: to keep features in, in main memory; those of images beyond are computed each time.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: SampleReader,
        preprocessing: Preprocessing,
        cache_bytes: int = CACHE_BYTES,
        views: int = 1,
    ) -> None:
        self.model, self.reader, self.preprocessing = model, reader, preprocessing
        self.block = min(model.slim_after)
        self.rotary: Rotary | None = None  # of the patches, the same for every image
        self._cache_bytes = cache_bytes
        self._views = views
        self._slots = torch.full((len(self),), -1)
        self._kept: Features | None = None
        self._used = 0
        self._threads = ThreadPoolExecutor(min(_DECODERS, cpu_count()))

    def __enter__(self) -> FrozenFeatures:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self.reader) * self._views

    def of(self, indices: Sequence[int]) -> Features:
        """Return the features of images by number.

        Raises:
            InputError: too many that cannot be read, or logits that are no finite numbers.
        """
        wanted = torch.as_tensor(indices)
        new = self._slots[wanted] < 0
        if not new.any():
            return self._recall(wanted)
        made = self._compute(wanted[new].tolist())
        if new.all():
            self._keep(wanted, made)
            return made
        old = self._recall(wanted[~new])
        self._keep(wanted[new], made)
        parts = {}
        for field in fields(Features):
            ours, theirs = getattr(made, field.name), getattr(old, field.name)
            both = ours.new_empty(len(wanted), *ours.shape[1:])
            both[new.to(both.device)], both[~new.to(both.device)] = ours, theirs
            parts[field.name] = both
        return Features(**parts)

    @torch.no_grad()
    def _compute(self, indices: list[int]) -> Features:
        images = torch.stack(list(self._threads.map(self._read, indices)))
        tokens, self.rotary = self.model.forward_to(
            self.block, images.to(next(self.model.parameters()).device)
        )
        output = unslimmed(self.model).forward_from(self.block, tokens, self.rotary)
        logits = mean_logits(output)
        if not torch.isfinite(logits).all():
            raise InputError(
                "the unslimmed model gives logits that are no finite numbers; look at the checkpoint, and at --mean and --std"
            )
        return Features(tokens, logits, summaries_of(output, self.model))

    def _read(self, index: int) -> Tensor:
        view, number = divmod(index, len(self.reader))

        def prepared(image: Any) -> Tensor:
            return torch.from_numpy(self.preprocessing(part_of(image, index) if view else image))

        return self.reader.read(number, prepared)[0]

    def _keep(self, indices: Tensor, made: Features) -> None:
        if self._kept is None:
            rows = [getattr(made, field.name)[0] for field in fields(Features)]
            room = min(len(self), self._cache_bytes // sum(row.numel() * row.element_size() for row in rows))
            # pages of memory are taken as they are written to
            self._kept = Features(*(torch.empty(room, *row.shape, dtype=row.dtype) for row in rows))
        count = min(len(indices), len(self._kept.tokens) - self._used)
        places = torch.arange(self._used, self._used + count)
        for field in fields(Features):
            getattr(self._kept, field.name)[places] = getattr(made, field.name)[:count].cpu()
        self._slots[indices[:count]] = places
        self._used += count

    def _recall(self, indices: Tensor) -> Features:
        assert self._kept is not None
        device, places = next(self.model.parameters()).device, self._slots[indices]
        return Features(*(getattr(self._kept, f.name)[places].to(device) for f in fields(Features)))
