from __future__ import annotations

import json

import numpy as np
import pytest

from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.tally import KEPT_FLIPS, Tally

IMAGES, CLASSES = 60, 5


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    reference = random.standard_normal((IMAGES, CLASSES)).astype(np.float32)
    engine = (reference + 0.5 * random.standard_normal((IMAGES, CLASSES))).astype(np.float32)
    return reference, engine, random.integers(0, CLASSES, IMAGES)


def tally_of(
    reference: np.ndarray, engine: np.ndarray, labels: np.ndarray, parts: int = 1, first: int = 0
) -> Tally:
    tally = Tally()
    for rows in np.array_split(np.arange(len(labels)), parts):
        names = [f"{first + row}.png" for row in rows]
        tally.add(reference[rows], engine[rows], labels[rows], names, [first + int(row) for row in rows])
    return tally


def test_figures_equal_those_of_all_logits_at_once(sides: tuple[np.ndarray, ...]) -> None:
    reference, engine, labels = sides
    found = Accuracy.of(tally_of(reference, engine, labels, parts=7))
    wide, other = reference.astype(np.float64), engine.astype(np.float64)
    assert found.sqnr_db == pytest.approx(
        10 * np.log10(np.square(wide).sum() / np.square(other - wide).sum())
    )
    cosines = (wide * other).sum(1) / np.linalg.norm(wide, axis=1) / np.linalg.norm(other, axis=1)
    assert found.cosine == pytest.approx(cosines.mean())
    assert found.lowest_cosine == pytest.approx(cosines.min())
    assert found.agreement == pytest.approx(100 * np.mean(reference.argmax(1) == engine.argmax(1)))
    for row in found.by_class:
        of_class = labels == row.label
        right = [int((side.argmax(1) == row.label)[of_class].sum()) for side in (reference, engine)]
        assert (row.images, row.reference, row.engine) == (int(of_class.sum()), *right)
        assert row.reference != row.engine
    drops = [row.engine - row.reference for row in found.by_class]
    assert drops == sorted(drops) and drops[0] < 0


def test_the_same_on_both_sides(sides: tuple[np.ndarray, ...]) -> None:
    reference, _, labels = sides
    found = Accuracy.of(tally_of(reference, reference.copy(), labels))
    assert (found.sqnr_db, found.flips, found.by_class) == (None, (), ())
    assert found.lowest_cosine == pytest.approx(1)
    zero = np.zeros((2, CLASSES), np.float32)
    assert Accuracy.of(tally_of(zero, zero, labels[:2])).cosine == 1
    assert Accuracy.of(tally_of(zero, reference[:2], labels[:2])).cosine == 0


def counted(reference: np.ndarray, engine: np.ndarray, labels: list[int], parts: int = 1) -> Accuracy:
    """Return the accuracy by a tally of several batches, one that was written and read, and one of two processes."""
    whole = tally_of(reference, engine, np.array(labels), parts)
    again = Tally.from_dict(json.loads(json.dumps(whole.to_dict())))
    half = len(labels) // 2
    first, second = (
        tally_of(reference[rows], engine[rows], np.array(labels)[rows], first=rows.start or 0)
        for rows in (slice(None, half), slice(half, None))
    )
    found = Accuracy.of(whole)
    assert Accuracy.of(again) == found
    merged = Accuracy.of(first.merge(second))
    for name in ("classes", "present", "majority", "reference_classes", "engine_classes", "ties", "alike"):
        assert getattr(merged, name) == getattr(found, name), name
    return found


def test_what_figures_rest_on(sides: tuple[np.ndarray, ...]) -> None:
    reference, engine, labels = sides
    found = counted(reference, engine, labels.tolist(), parts=7)
    assert (found.classes, found.present, found.ties, found.alike) == (CLASSES, len(set(labels)), 0, False)
    assert found.majority == pytest.approx(100 * np.bincount(labels).max() / IMAGES)
    assert found.reference_classes == len(set(reference.argmax(1)))
    assert found.engine_classes == len(set(engine.argmax(1)))


def test_what_holds_by_construction_is_counted(sides: tuple[np.ndarray, ...]) -> None:
    reference, engine, _ = sides
    logits = np.zeros((12, CLASSES), np.float32)
    zeros = counted(logits, logits, [0, 1] * 6)
    assert (zeros.ties, zeros.alike, zeros.reference_classes, zeros.agreement) == (12, True, 1, 100)
    assert len(zeros.doubts()) == 6  # both sides at chance and with one class, ties, alike
    # one picture, in batches of other sizes
    picture = reference[[0] * 12] + np.float32(1e-7) * np.arange(12, dtype=np.float32)[:, None]
    assert counted(picture, engine[:12], [3] * 12, parts=3).alike
    one = counted(reference[:12], engine[:12], [3] * 12)
    assert (one.present, one.majority, one.alike) == (1, 100, False)
    assert "all images are of one class" in one.doubts()[-1].text
    first = engine[:12].copy()
    first[:, 2] = 9
    assert counted(reference[:12], first, [0, 1] * 6).engine_classes == 1
    # a tie that is not of the highest logits decides nothing
    tied = np.array([[3, 1, 1, 0, 0], [3, 3, 1, 0, 0]], np.float32)
    assert counted(tied, tied, [0, 0]).ties == 1


def test_flips_are_the_surest_ones(sides: tuple[np.ndarray, ...]) -> None:
    reference, _, labels = sides
    engine = np.roll(reference, 1, axis=1)  # every image changes its class
    found = tally_of(reference, engine, labels, parts=9).flips
    likely = np.exp(reference) / np.exp(reference).sum(1, keepdims=True)
    margins = likely.max(1) - likely[np.arange(IMAGES), engine.argmax(1)]
    assert len(found) == KEPT_FLIPS < IMAGES
    assert [flip.index for flip in found] == np.argsort(-margins, kind="stable")[:KEPT_FLIPS].tolist()
    first = found[0]
    assert (first.image, first.label) == (f"{first.index}.png", labels[first.index])
    assert (first.reference, first.engine) == (reference[first.index].argmax(), engine[first.index].argmax())
    assert first.reference_probability == pytest.approx(likely[first.index].max())
    assert first.engine_probability == pytest.approx(likely[first.index].max())  # rolled, not changed
    assert first.margin == pytest.approx(margins.max())


def test_parts_add_up_to_the_whole(sides: tuple[np.ndarray, ...]) -> None:
    reference, engine, labels = sides
    whole = tally_of(reference, engine, labels)
    parts = [
        tally_of(reference[rows], engine[rows], labels[rows], first=rows.start)
        for rows in (slice(0, 23), slice(23, 60))
    ]
    merged = parts[1].merge(parts[0])
    assert merged.counts == whole.counts and merged.by_class == whole.by_class
    assert [f.index for f in merged.flips] == [f.index for f in whole.flips]
    assert Accuracy.of(merged).sqnr_db == pytest.approx(Accuracy.of(whole).sqnr_db)
    assert merged.lowest_cosine == whole.lowest_cosine and merged.images == IMAGES
    assert parts[0].images == 23  # and left as they were


def test_through_json(sides: tuple[np.ndarray, ...]) -> None:
    tally = tally_of(*sides)
    assert Tally.from_dict(json.loads(json.dumps(tally.to_dict()))) == tally


def test_json_values_carry_names(sides: tuple[np.ndarray, ...]) -> None:
    found = Accuracy.of(tally_of(*sides)).to_dict(["a", "b", "c", "d", "e"])
    flip = found["flips"][0]
    assert flip["label_name"] == "abcde"[flip["label"]] and flip["engine_name"] == "abcde"[flip["engine"]]
    assert found["by_class"][0]["name"] == "abcde"[found["by_class"][0]["label"]]
    json.dumps(found, allow_nan=False)
