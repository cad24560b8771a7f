from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import GateError, InputError
from sit_deploy.inference import load
from sit_deploy.measure.baseline import Doubt
from sit_deploy.pipeline.logits import torch_logits
from sit_deploy.preprocessing import load_image
from sit_deploy.validation.checks import check_accuracy, check_golden, open_labelled_for
from sit_deploy.validation.reference import reference_model
from tests.sit_deploy.conftest import CLASSES, Trained


def test_golden_outputs_of_the_engine(nano_fp32: Path) -> None:
    bundle = load_bundle(nano_fp32)
    with load(bundle) as classifier:
        hop = check_golden(bundle, classifier)
    assert hop.passed and hop.agreement == 1
    assert 0 < hop.error < hop.tolerance == 1e-4


def test_golden_outputs_of_an_engine_that_is_off(nano_fp32: Path) -> None:
    bundle = load_bundle(nano_fp32)
    with load(bundle) as classifier:
        exact = classifier.outputs

        def off(images: np.ndarray) -> dict[str, np.ndarray]:
            logits = exact(images)["logits"]
            logits[2, 7] += 1e-3 * logits.std()
            return {"logits": logits}

        classifier.outputs = off
        hop = check_golden(bundle, classifier)
    assert not hop.passed
    assert hop.error == pytest.approx(1e-3, rel=0.1)


def test_accuracy_equals_a_count_by_hand(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    folder, prepare = ImageFolder(trained.images), bundle.preprocessing()
    labels = [CLASSES.index(folder.classes[index]) for _, index in folder.samples]
    images = np.stack([prepare(load_image(path)) for path, _ in folder.samples])
    best = np.argsort(-torch_logits(reference_model(bundle), images), axis=1, kind="stable").tolist()
    top1 = 100 * np.mean([order[0] == label for order, label in zip(best, labels, strict=True)])
    top5 = 100 * np.mean([label in order[:5] for order, label in zip(best, labels, strict=True)])
    seen: list[tuple[int, int]] = []
    with load(bundle) as classifier:
        found = check_accuracy(
            bundle,
            classifier,
            open_labelled_for(bundle, trained.images),
            progress=lambda _, done, total: seen.append((done, total)),
        ).accuracy
    assert found.images == len(labels) == 11
    assert (found.reference_top1, found.reference_top5) == (pytest.approx(top1), pytest.approx(top5))
    assert (found.engine_top1, found.agreement, found.drop) == (pytest.approx(top1), 100, 0)
    assert 20 < top1 < 80  # neither all right nor all wrong, so that a wrong count would show
    assert seen[-1] == (11, 11)


def test_a_data_set_of_other_classes(trained: Trained, make_image_folder: Callable[..., Path]) -> None:
    bundle = load_bundle(trained.bundle)
    with load(bundle) as classifier, pytest.raises(InputError, match=r"2 classes, the model 7 classes"):
        check_accuracy(bundle, classifier, open_labelled_for(bundle, make_image_folder(("kiwi", "plum"))))


def test_a_limit_is_not_kept_on_labels_in_doubt(trained: Trained) -> None:
    """Agreement needs no labels."""
    bundle = load_bundle(trained.bundle)
    with load(bundle) as classifier:
        found = check_accuracy(bundle, classifier, open_labelled_for(bundle, trained.images))
    found = replace(found, doubt=Doubt("so", "the order of the classes is not certain"))
    with pytest.raises(
        GateError, match="--max-accuracy-drop cannot be judged here: the order of the classes"
    ):
        found.require(max_drop=100)
    found.require(min_agreement=50)
