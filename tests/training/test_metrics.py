"""Metrics against numbers computed by hand, each image counted once."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.processes import World
from training.metrics import Metrics, evaluate

ALONE = World(0, 1, torch.device("cpu"))


class Lookup(nn.Module):
    """A model whose logits for an image full of i are row i."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.rows[images[:, 0, 0, 0].long()]


def batches(labels: list[int], size: int = 2) -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return list(zip(images.split(size), torch.tensor(labels).split(size), strict=True))


L2, L3 = math.log(2), math.log(3)


def test_values_computed_by_hand() -> None:
    """Logits ln p: probabilities (1/2, 1/3, 1/6), which sum to one, and the like."""
    half, third, sixth = -L2, -L3, -math.log(6)
    model = Lookup([[half, third, sixth], [half, third, sixth], [sixth, half, third]])
    teacher = Lookup([[half, sixth, third], [-L3, -L3, -L3], [sixth, math.log(2 / 3), sixth]])
    metrics = evaluate(model, batches([0, 1, 0]), ALONE, teacher)
    assert metrics.images == 3
    assert metrics.loss == pytest.approx((L2 + L3 + math.log(6)) / 3)
    assert metrics.top1 == pytest.approx(100 / 3)
    assert metrics.top5 == pytest.approx(100)  # of three classes
    assert metrics.agreement == pytest.approx(100)  # of equal classes the first
    # KL of the model's from the teacher's: sum of t·ln(t/s)
    kl = [
        1 / 6 * math.log(1 / 2) + 1 / 3 * math.log(2),
        1 / 3 * (math.log(2 / 3) + math.log(2)),
        2 / 3 * math.log(4 / 3) + 1 / 6 * math.log(1 / 2),
    ]
    assert metrics.kl == pytest.approx(sum(kl) / 3, rel=1e-6)


def test_agreement_is_of_the_best_class_alone() -> None:
    model = Lookup([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    teacher = Lookup([[9.0, 0.0, 8.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 2.0, 0.0]])
    assert evaluate(model, batches([2, 2, 2, 2]), ALONE, teacher).agreement == 50


def test_top5_counts_the_first_five_alone() -> None:
    rows = [[float(-i) for i in range(8)]] * 8  # class i comes at place i
    metrics = evaluate(Lookup(rows), batches(list(range(8)), 3), ALONE)
    assert (metrics.images, metrics.top1, metrics.top5) == (8, 12.5, 62.5)
    assert metrics.agreement is None and metrics.kl is None
    assert metrics.to_dict().keys() == {"images", "loss", "top1", "top5"}


def test_label_minus_one_is_not_counted() -> None:
    rows = [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [-9.0, 9.0]]
    teacher = Lookup([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    whole = evaluate(Lookup(rows), batches([0, 0, 1, -1]), ALONE, teacher)
    part = evaluate(Lookup(rows), batches([0, 0, 1]), ALONE, teacher)
    assert whole == part and whole.images == 3
    alone = evaluate(Lookup(rows), batches([-1, 0, 1, -1], 1), ALONE, teacher)  # whole batches of them
    assert (alone.images, alone.top1) == (2, 0)


def test_nothing_to_count_is_refused() -> None:
    model = Lookup([[1.0, 0.0]] * 2)
    for nothing in ([], batches([-1, -1])):
        with pytest.raises(InputError, match="no held-out image could be read"):
            evaluate(model, nothing, ALONE)


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(InputError, match="label 2 is beyond the 2 classes"):
        evaluate(Lookup([[1.0, 0.0]] * 2), batches([0, 2]), ALONE)


@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_both_are_measured_in_eval_mode_and_left_as_they_were(modes: tuple[bool, bool]) -> None:
    models = [Lookup([[1.0, 0.0]] * 4).train(mode) for mode in modes]
    evaluate(models[0], batches([0, 1, 0, 1]), ALONE, models[1])
    assert [m.modes for m in models] == [[False, False]] * 2
    assert tuple(m.training for m in models) == modes


def test_no_graph_is_kept_and_progress_is_told() -> None:
    class Learning(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images.flatten(1))
            assert not logits.requires_grad
            return logits

    done: list[int] = []
    entered: list[int] = []

    def autocast() -> nullcontext:
        entered.append(1)
        return nullcontext()

    evaluate(Learning(12, 2), batches([0, 1, 0, 1, 0]), ALONE, autocast=autocast, progress=done.append)
    assert done == [1, 2, 3] and len(entered) == 3


def test_many_images_do_not_wear_the_sums_down() -> None:
    """Sums in float32 would stop growing, or lose digits, long before ImageNet ends."""
    batch = batches([0, 1])[0]
    loss = evaluate(Lookup([[0.1, 0.0]] * 2), [batch] * 3000, ALONE).loss
    expected = (math.log(1 + math.exp(-0.1)) + math.log(1 + math.exp(0.1))) / 2
    assert loss == pytest.approx(expected, rel=1e-7)


def test_shards_of_processes_add_up_to_the_whole() -> None:
    """Five images over three processes: unequal shards weigh by their images, not by their number."""

    class Recording(World):
        def sum(self, values: Tensor) -> Tensor:
            shards.append(values)
            return values

    class Adding(World):
        def sum(self, values: Tensor) -> Tensor:
            return torch.stack(shards).sum(0)

    generator = torch.Generator().manual_seed(0)
    rows, guides = (torch.randn(5, 4, generator=generator).tolist() for _ in range(2))
    data = batches([3, 1, 0, 2, 1], 1)
    whole = evaluate(Lookup(rows), data, ALONE, Lookup(guides))
    shards: list[Tensor] = []
    for rank in range(3):
        evaluate(Lookup(rows), data[rank::3], Recording(rank, 3, ALONE.device), Lookup(guides))
    together = evaluate(Lookup(rows), data[:1], Adding(0, 3, ALONE.device), Lookup(guides))
    assert together.images == 5
    assert together.to_dict() == pytest.approx(whole.to_dict(), rel=1e-12)
    assert isinstance(together, Metrics)
