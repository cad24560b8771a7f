"""The FRD loss against values computed by hand, and its gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import FRDOutput, create_model
from training import frd_loss

LOG2, LOG3 = math.log(2), math.log(3)


def output(logits, tokens, dist=None):
    tensor = torch.tensor
    return FRDOutput(tensor(logits), None if dist is None else tensor(dist), [tensor(t) for t in tokens])


def test_values_computed_by_hand():
    # softmax(ln 3, 0) = (3/4, 1/4); softmax(0, 0) = (1/2, 1/2)
    student = output([[LOG3, 0.0]], [[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    teacher = output([[0.0, 0.0]], [[[[0.0, 0.0]]], [[[0.0, 4.0]]]])
    loss = frd_loss(student, teacher, torch.tensor([1]))
    assert loss.classification.item() == pytest.approx(2 * LOG2)  # -ln(1/4)
    assert loss.tokens.item() == pytest.approx((2.5 + 8.0) / 2)  # mean over blocks of (1+4)/2 and 16/2
    # F.kl_div takes the student's log-probabilities and the teacher as the target: sum of teacher * ln(teacher / student)
    assert loss.logits.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert loss.hard.item() == 0
    assert loss.total.item() == pytest.approx(2 * LOG2 + 2 * 5.25 + 2 * loss.logits.item())


def test_temperature_divides_logits_and_scales_back():
    student, teacher = output([[2 * LOG3, 0.0]], []), output([[0.0, 0.0]], [])
    student.tokens.append(torch.zeros(1, 1, 1))
    teacher.tokens.append(torch.zeros(1, 1, 1))
    loss = frd_loss(student, teacher, torch.tensor([0]), temperature=2.0)
    assert loss.logits.item() == pytest.approx(4 * 0.5 * (math.log(2 / 3) + math.log(2)))


def test_soft_targets_and_the_cnn_teacher():
    student = output([[LOG3, 0.0]], [[[[0.0]]]], dist=[[0.0, LOG3]])
    teacher = output([[LOG3, 0.0]], [[[[0.0]]]])
    loss = frd_loss(student, teacher, torch.tensor([[0.5, 0.5]]), torch.tensor([[5.0, 1.0]]))
    assert loss.classification.item() == pytest.approx(0.5 * math.log(4 / 3) + 0.5 * 2 * LOG2)
    assert loss.hard.item() == pytest.approx(
        2 * LOG2
    )  # the CNN says class 0, to which the dist head gives 1/4
    assert loss.logits.item() == pytest.approx(0, abs=1e-7)


def test_the_class_that_the_teacher_sees() -> None:
    """The class head's cross-entropy with it, on its own."""
    student = output([[LOG3, 0.0], [0.0, 0.0]], [])
    teacher = output([[0.0, 1.0], [2.0, 1.0]], [[[[0.0]]]])
    weights = {"token_weight": 0.0, "logits_weight": 0.0}
    target = torch.tensor([0, 1])
    loss = frd_loss(student, teacher, target, **weights, hard_label_weight=0.5)
    assert loss.hard_label.item() == pytest.approx(
        (2 * LOG2 + LOG2) / 2
    )  # of classes 1 and 0: -ln(1/4), -ln(1/2)
    assert loss.classification.item() == pytest.approx((math.log(4 / 3) + LOG2) / 2)
    assert loss.tokens.item() == 0  # none are asked of a student when they weigh nothing
    assert loss.total.item() == pytest.approx(loss.classification.item() + 0.5 * loss.hard_label.item())
    without = frd_loss(student, teacher, target, **weights)
    assert without.hard_label.item() == 0 and without.total.item() == without.classification.item()


def test_two_heads_without_a_cnn_learn_by_their_mean() -> None:
    """A distilled DeiT that is slimmed, and a student that recovers under INT8's rounding."""
    two, mean = output([[2 * LOG3, 0.0]], [[[[0.0]]]], dist=[[0.0, 0.0]]), output([[LOG3, 0.0]], [[[[0.0]]]])
    guide = output([[0.5, 2.0]], [[[[1.0]]]], dist=[[1.5, -1.0]])
    target = torch.tensor([1])
    plain = output([[1.0, 0.5]], [[[[1.0]]]])
    assert frd_loss(two, guide, target).total == pytest.approx(frd_loss(mean, plain, target).total.item())
    assert frd_loss(two, plain, target).total == pytest.approx(frd_loss(mean, plain, target).total.item())
    # of a teacher whose student has one head, its class head
    one = output([[0.5, 2.0]], [[[[1.0]]]])
    assert frd_loss(mean, guide, target).total == pytest.approx(frd_loss(mean, one, target).total.item())


def test_gradients_by_finite_differences_and_none_for_the_teacher():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    student = (draw(3, 4), draw(3, 5, 2))
    teacher = (draw(3, 4), draw(3, 5, 2))
    target = torch.tensor([0, 3, 1])

    def total(logits, tokens):
        ours, theirs = FRDOutput(logits, None, [tokens]), FRDOutput(teacher[0], None, [teacher[1]])
        return frd_loss(ours, theirs, target).total

    assert torch.autograd.gradcheck(total, student)
    total(*student).backward()
    assert all(t.grad is None for t in teacher)


def test_a_real_pair_and_refusals():
    images = torch.randn(2, 3, 112, 112)
    student = create_model("sit_nano", num_classes=5, reverse_tsm=True)
    teacher = create_model("lvvit_nano", num_classes=5)
    loss = frd_loss(student.forward_frd(images), teacher.forward_frd(images), torch.tensor([0, 1]))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.rtsm.parameters())
    with pytest.raises(InputError, match="do not fit"):
        frd_loss(student.forward_frd(images), FRDOutput(loss.total, None, []), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="dist token"):
        frd_loss(
            student.forward_frd(images), teacher.forward_frd(images), torch.tensor([0, 1]), torch.zeros(2, 5)
        )
