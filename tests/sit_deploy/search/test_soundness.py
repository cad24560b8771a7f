"""What speaks against a comparison is said before anything is slimmed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.search.soundness import soundness

LABELS = np.arange(200) % 4


def logits(classes):
    return 5 * np.eye(4, dtype=np.float32)[np.asarray(classes) % 4] + np.random.default_rng(0).normal(
        0, 0.1, (len(LABELS), 4)
    ).astype(np.float32)


def told(given, labels=LABELS, trained=True, top1=None):
    checkpoint = SimpleNamespace(path=Path("teacher.pth"), sha256="0" * 64, source="model")
    loaded = SimpleNamespace(
        checkpoint=checkpoint if trained else None,
        model=SimpleNamespace(num_classes=4),
        config=SimpleNamespace(top1=top1),
    )
    return soundness(given, labels, None, loaded, BuildRequest("lvvit_nano", None))


def test_a_model_that_knows_its_classes_is_sound():
    found = told(logits(LABELS))
    assert found.notes == () and found.unsound is None
    assert told(logits(LABELS), None).notes == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (0 * LABELS, "gives all 200 images one class"),
        (LABELS + 1, "classes seem to be in another order"),
        (np.random.default_rng(1).integers(0, 4, 200), "that says nothing for it"),
    ],
)
def test_labels_that_are_not_the_model_s_judge_no_limit(given, says):
    found = told(logits(given))
    assert says in found.unsound and any(says in note for note in found.notes)
    assert len(set(found.notes)) == len(found.notes)


def test_without_labels_too_one_class_says_little():
    found = told(logits(0 * LABELS), None)
    assert "gives all 200 images one class" in found.notes[0] and found.unsound is None


def test_nothing_is_expected_of_random_weights():
    assert told(logits(0 * LABELS), trained=False).notes == ()
