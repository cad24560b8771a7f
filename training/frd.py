"""The loss of Feature Recalibration Distillation, "Self-slimmed Vision Transformer" (arXiv 2111.12624), section 3.3."""

from __future__ import annotations

from dataclasses import replace
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
    hard_label: Tensor
    total: Tensor


def frd_loss(  # noqa: PLR0913
    student: FRDOutput,
    teacher: FRDOutput,
    target: Tensor,
    cnn_logits: Tensor | None = None,
    *,
    token_weight: float = 2.0,
    logits_weight: float = 2.0,
    temperature: float = 1.0,
    hard_label_weight: float = 0.0,
) -> FRDLoss:
    """Return CE + 2·mean over blocks of MSE(tokens) + 2·τ²·KL(teacher‖student) [+ CE(dist head, class of the CNN)].

    KL(teacher‖student) = Σ teacher · log(teacher / student) over the classes, a mean over the batch, as in the official code.
    Only the student is differentiated. A student whose dist token has no CNN teacher (any more) learns by what it is deployed with,
    the mean of its heads, and so does a teacher of two heads teach it. With `hard_label_weight`, also the cross-entropy of the class head with the class
    that the teacher sees: hard-label distillation of DeiT (arXiv 2012.12877, section 4) without its token. It takes more
    than seven arguments: both sides, and the weights of the terms by their names.

    Args:
        student: of `SiT.forward_frd` with reverse TSMs, so that its tokens have the teacher's shapes; without tokens where
            their weight is 0.
        teacher: of the unslimmed model's `forward_frd`.
        target: classes int64 (B,), or soft targets float (B, classes) as mixup gives them.
        cnn_logits: logits (B, classes) of the extra CNN teacher; the student then needs a dist token.
        token_weight: of the tokens' term.
        logits_weight: of the logits' term.
        temperature: τ, which divides both sides' logits of the logits' term.
        hard_label_weight: of the term of the teacher's class; 0 leaves it out.

    Raises:
        InputError: numbers or shapes of tokens that differ, or CNN logits for a student without a dist token.
    """
    tokens = student.logits.new_zeros(())
    if token_weight or student.tokens:
        tokens = _token_loss(student, teacher)
    if cnn_logits is not None and student.dist_logits is None:
        raise InputError(
            "CNN logits and a dist token go together; create the student with dist_token=True or leave both"
        )
    if cnn_logits is None and student.dist_logits is not None:
        student, teacher = _with_mean_logits(student), _with_mean_logits(teacher)
    classification = F.cross_entropy(student.logits, target)
    logits = temperature**2 * F.kl_div(
        F.log_softmax(student.logits / temperature, dim=-1),
        F.log_softmax(teacher.logits.detach() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    hard = student.logits.new_zeros(())
    if cnn_logits is not None:
        hard = F.cross_entropy(student.dist_logits, cnn_logits.argmax(dim=-1))
    hard_label = student.logits.new_zeros(())
    if hard_label_weight:
        hard_label = F.cross_entropy(student.logits, teacher.logits.argmax(dim=-1))
    total = classification + token_weight * tokens + logits_weight * logits + hard
    if hard_label_weight:
        total = total + hard_label_weight * hard_label
    return FRDLoss(classification, tokens, logits, hard, hard_label, total)


def _with_mean_logits(output: FRDOutput) -> FRDOutput:
    """Return a side with the mean of both heads' logits in place of the class head's, where it has both."""
    if output.dist_logits is None:
        return output
    return replace(output, logits=(output.logits + output.dist_logits) / 2)


def _token_loss(student: FRDOutput, teacher: FRDOutput) -> Tensor:
    """Return the mean over blocks of the mean squared error between both sides' tokens."""
    shapes = [[tuple(t.shape) for t in side.tokens] for side in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"student and teacher do not fit: tokens of {len(shapes[0])} and {len(shapes[1])} blocks, first of shape "
            f"{shapes[0][:1]} and {shapes[1][:1]}; use a teacher of the student's width, depth and image size"
        )
    pairs = zip(student.tokens, teacher.tokens, strict=True)
    return torch.stack([F.mse_loss(ours, theirs.detach()) for ours, theirs in pairs]).mean()
