"""What a frozen backbone makes of images, up to a model's first TSM and without any: computed once, kept as far as memory allows."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models import FRDOutput
from sit_deploy.models.rotary import Rotary
from sit_deploy.preprocessing import Preprocessing
from training.sample_reader import SampleReader

CACHE_BYTES = 1 << 30
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


class FrozenFeatures:
    """The features of images by a model whose backbone does not change; for use as a context, which ends its threads.

    Args:
        model: in eval mode, with a TSM at least.
        reader: its images; one that cannot be read gives way to the next.
        preprocessing: of evaluation; there is no augmentation, which would leave nothing to keep.
        cache_bytes: to keep features in, in main memory; those of images beyond are computed each time.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: SampleReader,
        preprocessing: Preprocessing,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.model, self.reader, self.preprocessing = model, reader, preprocessing
        self.block = min(model.slim_after)
        self.rotary: Rotary | None = None  # of the patches, the same for every image
        self._cache_bytes = cache_bytes
        self._slots = torch.full((len(reader),), -1)
        self._kept: Features | None = None
        self._used = 0
        self._threads = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1))

    def __enter__(self) -> FrozenFeatures:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self.reader)

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
        return self.reader.read(index, lambda image: torch.from_numpy(self.preprocessing(image)))[0]

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
