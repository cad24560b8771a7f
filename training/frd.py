"""The loss of Feature Recalibration Distillation, "Self-slimmed Vision Transformer" (arXiv 2111.12624), section 3.3."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.models import FRDOutput


class FRDLoss(NamedTuple):
    """The parts of the loss, scalars, before weighting; `total` is what is minimised."""

    classification: Tensor
    tokens: Tensor
    logits: Tensor
    hard: Tensor
    total: Tensor


def frd_loss(
    student: FRDOutput,
    teacher: FRDOutput,
    target: Tensor,
    cnn_logits: Tensor | None = None,
    *,
    token_weight: float = 2.0,
    logits_weight: float = 2.0,
    temperature: float = 1.0,
) -> FRDLoss:
    """Return CE + 2·mean over blocks of MSE(tokens) + 2·τ²·KL(teacher‖student) [+ CE(dist head, class of the CNN)].

    KL(teacher‖student) = Σ teacher · log(teacher / student) over the classes, a mean over the batch, as in the official code.
    Only the student is differentiated.

    Args:
        student: of `SiT.forward_frd` with reverse TSMs, so that its tokens have the teacher's shapes.
        teacher: of the unslimmed model's `forward_frd`.
        target: classes int64 (B,), or soft targets float (B, classes) as mixup gives them.
        cnn_logits: logits (B, classes) of the extra CNN teacher; the student then needs a dist token.
        token_weight: of the tokens' term.
        logits_weight: of the logits' term.
        temperature: τ, which divides both sides' logits.

    Raises:
        InputError: numbers or shapes of tokens that differ, or CNN logits without a dist token.
    """
    shapes = [[tuple(t.shape) for t in side.tokens] for side in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"student and teacher do not fit: tokens of {len(shapes[0])} and {len(shapes[1])} blocks, first of shape "
            f"{shapes[0][:1]} and {shapes[1][:1]}; use a teacher of the student's width, depth and image size"
        )
    if (cnn_logits is None) != (student.dist_logits is None):
        raise InputError(
            "CNN logits and a dist token go together; create the student with dist_token=True or leave both"
        )
    classification = F.cross_entropy(student.logits, target)
    pairs = zip(student.tokens, teacher.tokens, strict=True)
    tokens = torch.stack([F.mse_loss(ours, theirs.detach()) for ours, theirs in pairs]).mean()
    logits = temperature**2 * F.kl_div(
        F.log_softmax(student.logits / temperature, dim=-1),
        F.log_softmax(teacher.logits.detach() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    hard = student.logits.new_zeros(())
    if cnn_logits is not None:
        hard = F.cross_entropy(student.dist_logits, cnn_logits.argmax(dim=-1))
    total = classification + token_weight * tokens + logits_weight * logits + hard
    return FRDLoss(classification, tokens, logits, hard, total)
