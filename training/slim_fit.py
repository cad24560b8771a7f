"""Fitting a model's TSMs to what the model computes without them: its backbone frozen, no label needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sit_deploy.errors import InputError
from sit_deploy.models.rotary import Rotary
from training.seeding import FIT, permutation
from training.slim_features import Features, FrozenFeatures, mean_logits, summaries_of
from training.slim_options import FitOptions

_WARM_UP = 0.05  # share of the fit over which the learning rate grows
_CLIP = 1.0  # norm of the gradient
_COMPARED = 64  # images, at least, that tell how much they differ
_LEAST = 1e-6  # of their size: by which summaries differ at least, or those of equal images would be all that is fitted to


@dataclass(frozen=True)
class Fit:
    """What fitting did.

    Attributes:
        steps: taken.
        seconds: that they took.
        first_loss, last_loss: means over the first and last tenth of the steps.
    """

    steps: int
    seconds: float
    first_loss: float
    last_loss: float


Show = Callable[[float, int, float], None]  # share done, steps taken, loss


def fit_loss(
    model: nn.Module, features: Features, block: int, rotary: Rotary | None, variance: Tensor
) -> Tensor:
    """Return KL(unslimmed ‖ slimmed) of the classes + the squared error of what each block makes of the image, over its variance.

    Args:
        model: with TSMs.
        features: of a batch.
        block: that the first TSM follows.
        rotary: positions of the patches, where they have some.
        variance: of the unslimmed model's summaries, (blocks, rows, 1).
    """
    output = model.forward_from(block, features.tokens, rotary)
    kl = F.kl_div(
        mean_logits(output).log_softmax(dim=-1),
        features.logits.log_softmax(dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    error = (summaries_of(output, model) - features.summaries) ** 2
    return kl + (error / variance).mean()


def fit_tsms(
    model: nn.Module, features: FrozenFeatures, options: FitOptions, show: Show = lambda *_: None
) -> Fit:
    """Fit the TSMs of a model, in place; all else of it is left as it is, to the bit.

    Args:
        model: in eval mode, on its device.
        features: of the images to fit on.
        options: how.
        show: called after each step.

    Raises:
        InputError: fewer images than a step takes, images that cannot be read, or a loss that is no finite number.
    """
    variance: Tensor | None = None

    def loss(batch: Features) -> Tensor:
        nonlocal variance
        if variance is None:
            some = (
                batch if len(batch.tokens) >= _COMPARED else features.of(range(min(_COMPARED, len(features))))
            )
            variance = _variance(some.summaries)
        return fit_loss(model, batch, features.block, features.rotary, variance)

    return _fit(model, model.tsm, loss, features, options, show)


def _fit(
    model: nn.Module,
    part: nn.Module,
    loss_of: Callable[[Features], Tensor],
    features: FrozenFeatures,
    options: FitOptions,
    show: Show,
) -> Fit:
    """Fit a part of a model."""
    if len(features) < options.batch_size:
        raise InputError(f"{len(features)} images are fewer than the {options.batch_size} of one step")
    learned = list(part.parameters())
    with _frozen_but(model, learned):
        optimiser = torch.optim.AdamW(learned, lr=options.lr, weight_decay=0.0)
        started, losses = time.perf_counter(), []
        for indices in _batches(len(features), options):
            done = _share_done(len(losses), time.perf_counter() - started, options)
            if losses and done >= 1:
                break
            optimiser.param_groups[0]["lr"] = options.lr * _schedule(done)
            loss = loss_of(features.of(indices))
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is not finite after {len(losses)} steps; pass a smaller --lr than {options.lr:g}"
                )
            optimiser.zero_grad()
            loss.backward()
            clip_grad_norm_(learned, _CLIP)
            optimiser.step()
            losses.append(float(loss.detach()))
            share = _share_done(len(losses), time.perf_counter() - started, options)
            show(min(1.0, share), len(losses), losses[-1])
    tenth = max(1, len(losses) // 10)
    mean = [sum(some) / tenth for some in (losses[:tenth], losses[-tenth:])]
    return Fit(len(losses), time.perf_counter() - started, *mean)


@contextmanager
def _frozen_but(model: nn.Module, learned: list[nn.Parameter]) -> Iterator[None]:
    """Let some parameters alone have gradients meanwhile."""
    before = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


def _batches(images: int, options: FitOptions) -> Iterator[list[int]]:
    """Yield numbers of images without end: every epoch another order, and the images that fill no step left out."""
    for epoch in range(10**9):
        order = permutation(images, FIT, options.seed, epoch)
        for start in range(0, images - options.batch_size + 1, options.batch_size):
            yield order[start : start + options.batch_size].tolist()


def _share_done(steps: int, seconds: float, options: FitOptions) -> float:
    if options.steps is not None:
        return steps / options.steps
    assert options.seconds is not None
    return seconds / options.seconds


def _schedule(done: float) -> float:
    return min(1.0, (done + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _variance(summaries: Tensor) -> Tensor:
    """Return how much each row of each block differs between images, a mean over the channels: (blocks, rows, 1)."""
    floor = _LEAST * summaries.square().mean((0, -1)).unsqueeze(-1)
    return summaries.var(0, unbiased=False).mean(-1, keepdim=True).maximum(floor).clamp_min(1e-12)
