"""What an embedding bundle comes to, by its vectors alone."""

from __future__ import annotations

from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import Outcome, Topic
from tests.helpers.judged import Told, judge
from tests.helpers.judged import evidence as classifier
from tests.sit_deploy.report.conftest import page_of


def embedding(
    images: int = 10_000, lost: int = 20, gained: int = 10, reference: float = 80.0, **changed: Any
) -> dict[str, Any]:
    engine = reference - 100 * (lost - gained) / images
    whole = {
        "output": "features", "measured_on": "onnxruntime engine", "data": "flowers", "images": images, "classes": 10,
        "reference": reference, "engine": engine, "reference_interval": [reference - 1, reference + 1],
        "engine_interval": [engine - 1, engine + 1], "same_label": 97.0, "same_neighbour": 90.0, "cosine_min": 0.995,
        "cosine_mean": 0.999, "farthest": "flowers/rose/7.jpg", "majority": 12.0, "notes": [],
        "paired": {"images": images, "lost": lost, "gained": gained, "drop": 100 * (lost - gained) / images},
    }  # fmt: skip
    if "paired" in changed and changed["paired"] is None and "engine" in changed:
        whole["reference"] = None
    return {**whole, **changed}


UNLABELLED = dict.fromkeys(
    ("classes", "engine", "reference_interval", "engine_interval", "same_label", "majority", "paired")
)


def evidence(**changed: Any) -> dict[str, Any]:
    return {**classifier(accuracy=None), "embedding": embedding(**changed)}


def judged(limits: dict[str, float] | None = None, **changed: Any) -> Told:
    return judge(evidence(**changed), **(limits or {}))


def test_vectors_whose_neighbours_stay_right() -> None:
    found = judged()
    assert (found.outcome, found.against, found.missing) == (Outcome.SHIP, (), ())
    told = " ".join(found.favour)
    assert (
        "falls by 0.10 points, from 80.00 to 79.90 %, on 10000 images of 10 classes, where 1 may be lost"
        in told
    )
    assert (
        "cosine of the features of the engine and of PyTorch is 0.995000 at the least and 0.999000 in the mean"
        in told
    )
    assert "at least 0.9 is asked of this precision" in told


@pytest.mark.parametrize(
    ("changed", "topic", "words"),
    [
        ({"lost": 300}, Topic.NEIGHBOURS, "falls by 2.90 points, from 80.00 to 77.10 %"),
        ({"cosine_min": 0.85}, Topic.COSINE, "0.850000 at the least"),
        ({"reference": 20.0}, Topic.BASIS, "By PyTorch nearest neighbours have the right label for 20.00 %"),
        ({"reference": 20.0, "lost": 0, "gained": 0}, Topic.BASIS, "guessing has it for 12.00 %"),
    ],
)
def test_what_speaks_against_vectors(changed: dict[str, Any], topic: Topic, words: str) -> None:
    found = judged(**changed)
    assert found.outcome is Outcome.DO_NOT_SHIP and any(words in reason for reason in found.against)
    assert topic in {reason.topic for reason in found.verdict.reasons}


def test_few_images_do_not_decide() -> None:
    found = judged(images=50, lost=1, gained=1)
    assert found.outcome is Outcome.UNSURE and "measure on more images" in found.missing[0]


def test_vectors_that_are_the_references_are_proof_on_few_images() -> None:
    found = judged(images=50, lost=0, gained=0, cosine_min=1.0, cosine_mean=1.0)
    assert found.outcome is Outcome.SHIP and "but for float rounding on all 50 images" in " ".join(
        found.favour
    )


def test_without_labels() -> None:
    """Photographs tell of directions; only labels tell whether neighbours are right, unless the vectors are the same."""
    found = judged(**UNLABELLED)
    assert (
        found.outcome is Outcome.UNSURE
        and "give images of two labels at least, and two images of one" in found.missing[0]
    )
    assert judged(**UNLABELLED, cosine_min=1.0, cosine_mean=1.0).outcome is Outcome.SHIP
    found = judged({"max_drop": 1.0}, **UNLABELLED, cosine_min=1.0, cosine_mean=1.0)
    assert found.outcome is Outcome.UNSURE
    synthetic = judged(**UNLABELLED, data=None, cosine_min=1.0, cosine_mean=1.0)
    assert synthetic.outcome is Outcome.UNSURE and "10000 synthetic images" in " ".join(synthetic.favour)


def test_a_single_image_is_told_as_one() -> None:
    found = judged(images=1, lost=0, gained=0, **{**UNLABELLED, "same_neighbour": None})
    assert "on 1 image;" in " ".join(found.favour)


def test_an_engine_that_did_not_run_here_is_not_spoken_of() -> None:
    """What was measured then are the vectors of the graph before it."""
    told = " ".join(judged(measured_on="ONNX fp16").favour)
    assert "cosine of the features of ONNX fp16 and of PyTorch" in told and "of the engine" not in told


@pytest.mark.parametrize(
    ("alone", "words"),
    [(1, "1 image is the only one of its class"), (7, "7 images are the only ones of their classes")],
)
def test_images_that_no_neighbour_can_be_right_of_are_said(alone: int, words: str) -> None:
    assert words in page_of(evidence(alone=alone), form="md")
    assert "the only one" not in page_of(evidence(), form="md")


def test_agreement_is_of_labels_or_else_of_neighbours() -> None:
    assert judged({"min_agreement": 96.0}).outcome is Outcome.SHIP
    found = judged({"min_agreement": 98.0})
    assert (
        "97.00 % of the images get the same label by their nearest neighbours; 98 is asked for"
        in found.against[0]
    )
    found = judged({"min_agreement": 91.0}, **UNLABELLED)
    assert "90.00 % of the images have the same nearest neighbour; 91 is asked for" in found.against[0]
    assert any("--data" in text for text in judged({"min_agreement": 1.0}, **UNLABELLED, data=None).missing)


@pytest.mark.parametrize(
    "changed",
    [
        {"paired": None}, {"engine": None}, {"cosine_min": 1.5}, {"cosine_min": 0.999, "cosine_mean": 0.9},
        {"paired": {"images": 10_000, "lost": 20, "gained": 10, "drop": 5.0}}, {"images": 0},
    ],
)  # fmt: skip
def test_figures_that_contradict_one_another_are_refused(changed: dict[str, Any]) -> None:
    row = evidence()
    row["embedding"] |= changed
    with pytest.raises(InputError, match="embedding"):
        Evidence.from_dict(row)


@pytest.mark.parametrize("form", ["html", "md"])
def test_the_page(form: str) -> None:
    row = evidence()
    for entry in row["ledger"]["entries"]:
        entry |= {"cosine": 0.999, "lowest_cosine": 0.99, "nearest": 79.5, "top1": None, "sqnr_db": None}
    one = page_of(row, form=form)
    assert "Nearest neighbours" in one and "79.90" in one and "0.995000" in one
    assert "by those of the engine alone: 10" in one and "rose/7.jpg" in one
    assert "0.990000" in one and "SQNR" not in one.partition("Every hop of the build")[0]
    assert "agreement (of labels by the nearest other image) and cosine are with the model in PyTorch" in one
    both = page_of(row, {**row, "bundle": "b", "name": "b"}, form=form)
    assert "least cosine" in both and "nearest right %" in both
    bare = page_of({**evidence(**UNLABELLED), "around": {**row["around"], "classes_ms": None}}, form=form)
    assert "without labels to compare in flowers" in bare
