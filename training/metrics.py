"""Accuracy on held-out images over all processes, each image counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.processes import World


@dataclass(frozen=True)
class Metrics:
    """Means over `images`: loss is cross-entropy; top1, top5 and agreement are percent.

    Attributes:
        agreement: images that a teacher gives the same class.
        kl: KL divergence of its probabilities from the model's, in nats. Both None without a teacher.
    """

    images: int
    loss: float
    top1: float
    top5: float
    agreement: float | None = None
    kl: float | None = None

    def to_dict(self) -> dict[str, float]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    world: World,
    teacher: nn.Module | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: Callable[[int], None] = lambda _: None,
) -> Metrics:
    """Measure a model; both it and the teacher are put in eval mode, and left in the mode they were in.

    Args:
        model: what is measured.
        batches: (images (B, 3, H, W), labels (B,)) of this process alone; label -1 is not counted.
        world: the processes that share the images.
        teacher: what the model is compared with, if anything.
        autocast: the context that a forward pass runs in.
        progress: called with the number of batches done.

    Raises:
        InputError: no image at all, or labels that the model has no class for.
    """
    models = [m for m in (model, teacher) if m is not None]
    modes = [m.training for m in models]
    for m in models:
        m.eval()
    # images, loss, top1, top5, agreement, kl
    sums = torch.zeros(6, dtype=torch.float64, device=world.device)
    for done, (images, labels) in enumerate(batches, 1):
        images, labels = (t.to(world.device, non_blocking=True) for t in (images, labels))
        with autocast():
            logits = model(images).float()
            guide = teacher(images).float() if teacher is not None else None
        if labels.max() >= logits.shape[1]:
            raise InputError(
                f"label {int(labels.max())} is beyond the {logits.shape[1]} classes of the model; check the data set"
            )
        sums += _sums(logits, labels, guide)
        progress(done)
    for m, mode in zip(models, modes, strict=True):
        m.train(mode)
    count, loss, top1, top5, agree, kl = world.sum(sums).tolist()
    if not count:
        raise InputError("no held-out image could be read; check the validation images")
    shares = (loss / count, 100 * top1 / count, 100 * top5 / count)
    if teacher is None:
        return Metrics(int(count), *shares)
    return Metrics(int(count), *shares, 100 * agree / count, kl / count)


def _sums(logits: Tensor, labels: Tensor, guide: Tensor | None) -> Tensor:
    """Return the six sums over one batch, float64 (6,)."""
    counted = labels >= 0
    logits, labels = logits[counted], labels[counted]
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    sums = [counted.sum(), F.cross_entropy(logits, labels, reduction="sum"), hits[:, 0].sum(), hits.sum()]
    if guide is None:
        sums += [logits.new_zeros(())] * 2
    else:
        guide = guide[counted]
        log_p, log_q = guide.log_softmax(1), logits.log_softmax(1)
        sums += [(guide.argmax(1) == best[:, 0]).sum(), (log_p.exp() * (log_p - log_q)).sum()]
    return torch.stack([s.double() for s in sums])
