from __future__ import annotations

from collections import Counter

import pytest

from sit_deploy.accuracy import Accuracy
from sit_deploy.baseline import baseline_warning, expected_top1

TRAINED = {"weights": {"source": "x.pth", "top1": 95.0}, "model": {"published_top1": None, "num_classes": 10}}
OFFICIAL = {
    "weights": {"source": "x.pth", "top1": None},
    "model": {"published_top1": 83.1, "num_classes": 1000},
}


def reached(top1: float, images: int = 1000) -> Accuracy:
    return Accuracy(images, top1, 100.0, top1, 100.0, 100.0)


def guesses(shift: int, right: int = 90, classes: int = 10) -> Counter[tuple[int, int]]:
    """Of 100 images a class, `right` are taken for the class `shift` further, the others for the next after that."""
    found: Counter[tuple[int, int]] = Counter()
    for label in range(classes):
        found[label, (label + shift) % classes] += right
        found[label, (label + shift + 1) % classes] += 100 - right
    return found


def test_what_is_expected() -> None:
    assert expected_top1(TRAINED) == (95.0, "its training")
    assert expected_top1(OFFICIAL) == (83.1, "its publication")
    other_head = {**OFFICIAL, "model": {"published_top1": 83.1, "num_classes": 10}}
    assert expected_top1(other_head) is None
    assert expected_top1({**OFFICIAL, "weights": {"source": "random", "seed": 0}}) is None


def test_a_reference_that_is_what_it_was() -> None:
    for top1 in (92.0, 95.0, 99.0):
        assert baseline_warning(reached(top1), TRAINED, guesses(0)) is None
    assert baseline_warning(reached(20.0, images=40), TRAINED, guesses(0)) is None  # too few to tell
    assert baseline_warning(reached(88.0, images=60), TRAINED, guesses(0)) is None  # may be chance


def test_a_reference_that_is_far_off() -> None:
    told = baseline_warning(reached(70.0), TRAINED, guesses(0, right=70))
    assert told.startswith(
        "the PyTorch reference itself has 70.0 % top-1 on these images, and by its training 95.0 %"
    )
    assert "mean, std, crop" in told


def test_classes_in_another_order() -> None:
    told = baseline_warning(reached(0.0), TRAINED, guesses(3))
    assert "in another order than the model's (90.0 % with the order it sees" in told
    assert "90 images of class" in told and "--labels" in told


@pytest.mark.parametrize("classes_seen", [1, 3])
def test_a_model_that_only_guesses_is_not_out_of_order(classes_seen: int) -> None:
    """It takes all for a few classes: no order of the classes makes that right."""
    few = Counter({(label, label % classes_seen): 100 for label in range(10)})
    assert "mean, std, crop" in baseline_warning(reached(10.0), TRAINED, few)
