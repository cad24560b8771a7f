"""The model's own answers say whether the classes are in another order, and a model that guesses says nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sit_deploy.measure.label_order import Guesses, better_order, confirmed, usual_orders


def answers(order: list[int], per_class: int, accuracy: float = 1.0, seed: int = 0) -> Guesses:
    """Answers of a model that sees class `order[label]` in images of a label, so often; else any class."""
    random, found = np.random.default_rng(seed), Counter()
    for label, seen in enumerate(order):
        for _ in range(per_class):
            found[label, seen if random.random() < accuracy else int(random.integers(len(order)))] += 1
    return found


def names(count: int, prefix: str = "class") -> list[str]:
    """Return names in the order that torchvision sorts them in."""
    return sorted(f"{prefix}{i}" for i in range(count))


BY_NUMBER = [int(name.removeprefix("class")) for name in names(12)]


@pytest.mark.parametrize(("per_class", "accuracy"), [(1, 1.0), (2, 0.8), (4, 0.6)])
@pytest.mark.parametrize(
    ("order", "said"),
    [
        (BY_NUMBER, "sorted by number"), ([*reversed(range(12))], "reversed"), ([*range(1, 12), 0], "one further"),
        ([11, *range(11)], "one back"),
    ],
)  # fmt: skip
def test_usual_orders_are_named(order: list[int], said: str, per_class: int, accuracy: float) -> None:
    found = better_order(answers(order, per_class, accuracy), names(12))
    assert found.name.startswith(said) and list(found.to) == order
    assert not confirmed(answers(order, per_class, accuracy), names(12))


def test_numbers_that_training_had_sorted_as_text() -> None:
    text = [sorted(map(str, range(12))).index(str(i)) for i in range(12)]
    found = better_order(answers(text, 2), list(map(str, range(12))))
    assert found.name.startswith("sorted as text")


def test_an_order_that_nothing_explains() -> None:
    order = np.random.default_rng(5).permutation(20).tolist()
    found = better_order(answers(order, 4, 0.85), names(20))
    assert found.name is None and list(found.to) == order
    thousand = np.random.default_rng(5).permutation(300).tolist()
    assert better_order(answers(thousand, 4, 0.7), names(300)).name is None


def test_two_classes_that_are_exchanged() -> None:
    assert better_order(answers([1, 0], 6), ["cat", "dog"]).name == "reversed"
    assert better_order(answers([1, 0], 2), ["cat", "dog"]) is None  # four images may be chance


@pytest.mark.parametrize(
    ("count", "per_class", "accuracy"), [(2, 6, 0.0), (3, 4, 0.2), (12, 1, 0.0), (12, 4, 0.3), (100, 2, 0.2)]
)
def test_a_poor_model_is_no_other_order(count: int, per_class: int, accuracy: float) -> None:
    alarms = sum(
        better_order(answers([*range(count)], per_class, accuracy, seed), names(count)) is not None
        for seed in range(40)
    )
    assert alarms <= 1


def test_a_model_that_takes_all_for_one_class() -> None:
    """With most images in class 0, taking all for it is right most often in whatever order puts it there."""
    found = Counter({(0, 1): 90, (1, 1): 10})
    assert better_order(found, ["cat", "dog"]) is None and not confirmed(found, ["cat", "dog"])


@pytest.mark.parametrize(("per_class", "accuracy"), [(1, 0.95), (4, 0.6)])
def test_a_model_that_bears_the_order_out(per_class: int, accuracy: float) -> None:
    assert confirmed(answers([*range(12)], per_class, accuracy), names(12))


def test_orders_that_are_one_are_named_once() -> None:
    assert [order.name.split()[0] for order in usual_orders(["cat", "dog"])] == ["reversed"]
    assert len(usual_orders(names(12))) == 4 and len(usual_orders(["same", "same", "other"])) == 3
