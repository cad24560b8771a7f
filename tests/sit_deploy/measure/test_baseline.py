from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.labelled import match_labels
from sit_deploy.errors import GateError
from sit_deploy.manifest import Model, Weights
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.baseline import Doubt, expected_top1, find_doubts


def facts(
    top1: float | None = None, published: float | None = None, classes: int = 10
) -> tuple[Weights, Model]:
    model = Model(
        name="sit_nano", image_size=(112, 112), num_classes=classes, tokens=[49], parameters=1, macs=1,
        published_top1=published,
    )  # fmt: skip
    return Weights(source="x.pth", sha256="0" * 64, top1=top1), model


TRAINED, UNKNOWN, OFFICIAL = facts(95.0), facts(), facts(published=83.1, classes=1000)


def reached(top1: float, images: int = 1000) -> Accuracy:
    return Accuracy(images, top1, 100.0, top1, 100.0, 100.0)


def guesses(shift: int, right: int = 90, classes: int = 10, of: int = 100) -> Counter[tuple[int, int]]:
    """Of some images a class, `right` are taken for the class `shift` further, the others for the next after that."""
    found: Counter[tuple[int, int]] = Counter()
    for label in range(classes):
        found[label, (label + shift) % classes] += right
        found[label, (label + shift + 1) % classes] += of - right
    return +found


def test_what_is_expected() -> None:
    assert expected_top1(*TRAINED) == (95.0, "its training")
    assert expected_top1(*OFFICIAL) == (83.1, "its publication")
    assert expected_top1(*facts(published=83.1)) is None  # another head
    assert expected_top1(Weights(source="random", seed=0), OFFICIAL[1]) is None


def test_a_reference_that_is_what_it_was() -> None:
    for top1 in (92.0, 95.0, 99.0):
        assert find_doubts(reached(top1), *TRAINED, guesses(0)) == Doubt()
    assert find_doubts(reached(20.0, images=40), *TRAINED, guesses(0)) == Doubt()  # too few to tell
    assert find_doubts(reached(88.0, images=60), *TRAINED, guesses(0)) == Doubt()  # may be chance


def test_a_reference_that_is_far_off() -> None:
    told = find_doubts(reached(70.0), *TRAINED, guesses(0, right=70))
    assert told.warning.startswith(
        "the PyTorch reference itself has 70.0 % top-1 on these images, and by its training 95.0 %"
    )
    assert "mean, std, crop" in told.warning and told.unsound is None


@pytest.mark.parametrize("known", [TRAINED, UNKNOWN])
def test_classes_in_another_order(known: tuple[Weights, Model]) -> None:
    """Also where nobody knows what the weights had before."""
    told = find_doubts(reached(0.0), *known, guesses(3))
    assert "in another order than the model's (90.0 % with the order it sees" in told.warning
    assert "90 images of class" in told.warning and "--labels" in told.warning
    with pytest.raises(GateError, match="--max-accuracy-drop cannot be judged here: the classes seem to be"):
        told.require_sound("--max-accuracy-drop")


def test_classes_in_another_order_on_few_images() -> None:
    told = find_doubts(reached(0.0, images=20), *UNKNOWN, guesses(1, right=2, of=2))
    assert "100.0 % with them one further, as after a class of background" in told.warning


@pytest.mark.parametrize("classes_seen", [1, 3])
def test_a_model_that_only_guesses_is_not_out_of_order(classes_seen: int) -> None:
    """It takes all for a few classes: no order of the classes makes that right."""
    few = Counter({(label, label % classes_seen): 100 for label in range(10)})
    told = find_doubts(reached(10.0), *TRAINED, few)
    assert "mean, std, crop" in told.warning and told.unsound is None


def test_an_order_that_is_not_certain(make_image_folder: Callable[..., Path]) -> None:
    """class10 before class2, or after it: the model itself says which, or nobody does."""
    folder = ImageFolder(make_image_folder([f"class{i}" for i in range(12)], per_class=1))
    samples = match_labels(folder, None, 12)
    known = facts(classes=12)
    assert find_doubts(reached(100.0, 48), *known, guesses(0, 4, 12, 4), samples) == Doubt()
    told = find_doubts(reached(8.0, 12), *known, Counter({(label, 0): 1 for label in range(12)}), samples)
    assert (
        "class 2 is class10 as torchvision sorts them, which is taken, and class2 as timm does"
        in told.unsound
    )
    numbered = sorted(range(12), key=str)  # by label, the class that its name's number says
    told = find_doubts(reached(0.0, 48), *known, Counter({pair: 4 for pair in enumerate(numbered)}), samples)
    assert "100.0 % with them sorted by number, as timm does it" in told.unsound
