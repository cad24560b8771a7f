from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import GateError, InputError
from sit_deploy.measure.accuracy import Accuracy, measure
from sit_deploy.preprocessing import Preprocessing

SMALL = Preprocessing.for_model(32)
Samples = list[tuple[Path, int]]


def top(logits: np.ndarray, labels: list[int], count: int) -> float:
    """Share of rows, in percent, whose label is among the first `count` classes; equal ones in index order."""
    hits = 0
    for row, label in zip(logits.tolist(), labels, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        hits += label in order[:count]
    return 100 * hits / len(labels)


def in_turn(logits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A model that gives these logits, row after row."""
    rows = iter(logits)
    return lambda images: np.stack([next(rows) for _ in images])


@pytest.fixture
def samples(make_image_folder: Callable[..., Path]) -> Samples:
    return ImageFolder(make_image_folder(("a", "b"), per_class=6)).samples


@pytest.mark.parametrize("batch", [1, 5, 8, 100])
def test_counts_equal_a_count_by_hand(batch: int, samples: Samples) -> None:
    """Few levels, so that many logits are equal: argmax takes the lower index, and so do both counts."""
    random = np.random.default_rng(3)
    ours, theirs = random.integers(0, 3, (2, 12, 9)).astype(np.float32)
    labels = [*ours.argmax(1)[:5].tolist(), *random.integers(0, 9, 7).tolist()]
    labelled = [(path, label) for (path, _), label in zip(samples, labels, strict=True)]
    seen: list[tuple[int, int]] = []
    found = measure(
        in_turn(theirs),
        in_turn(ours),
        labelled,
        SMALL,
        batch,
        lambda _, done, total: seen.append((done, total)),
    )
    assert found.images == 12
    assert found.reference_top1 == pytest.approx(top(theirs, labels, 1))
    assert found.reference_top5 == pytest.approx(top(theirs, labels, 5))
    assert found.engine_top1 == pytest.approx(top(ours, labels, 1))
    assert found.engine_top5 == pytest.approx(top(ours, labels, 5))
    assert found.agreement == pytest.approx(100 * np.mean(ours.argmax(1) == theirs.argmax(1)))
    assert found.drop == pytest.approx(found.reference_top1 - found.engine_top1)
    assert 0 < found.engine_top1 < found.engine_top5 < 100
    assert seen[-1] == (12, 12)


def test_ties_go_to_the_lower_class(samples: Samples) -> None:
    flat = np.zeros((2, 7), np.float32)
    first_and_fifth = measure(in_turn(flat), in_turn(flat), [(samples[0][0], 0), (samples[1][0], 4)], SMALL)
    assert (first_and_fifth.engine_top1, first_and_fifth.engine_top5) == (50, 100)
    sixth_and_last = measure(in_turn(flat), in_turn(flat), [(samples[0][0], 5), (samples[1][0], 6)], SMALL)
    assert (sixth_and_last.engine_top1, sixth_and_last.engine_top5) == (0, 0)


@pytest.mark.parametrize(("classes", "counted"), [(2, False), (5, False), (6, True)])
def test_a_top5_of_five_classes_would_hold_by_construction(
    classes: int, counted: bool, samples: Samples
) -> None:
    logits = np.eye(classes, dtype=np.float32)[[1, 1]]
    found = measure(in_turn(logits), in_turn(logits), [(p, 0) for p, _ in samples[:2]], SMALL)
    assert found.engine_top1 == 0
    assert (found.engine_top5, found.reference_top5) == ((100, 100) if counted else (None, None))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_a_hit(bad: float, samples: Samples) -> None:
    """NaN compares with nothing, so a count of larger logits finds none and would call it the best class."""
    good = np.zeros((12, 3), np.float32)
    broken = good.copy()
    broken[9] = bad
    with pytest.raises(GateError, match=rf"the engine gives NaN or infinite logits for {samples[9][0]};"):
        measure(in_turn(good), in_turn(broken), samples, SMALL, 4)
    with pytest.raises(InputError, match=rf"the PyTorch model itself gives NaN .* for {samples[9][0]};"):
        measure(in_turn(broken), in_turn(good), samples, SMALL, 4)


def test_no_images() -> None:
    with pytest.raises(InputError, match="no images"):
        measure(in_turn(np.zeros((0, 3))), in_turn(np.zeros((0, 3))), [], SMALL)


# --------------------------------------------------------------------------------------------------------- evidence


def test_images_that_only_one_side_gets_right(samples: Samples) -> None:
    labels = [(path, 0) for path, _ in samples[:6]]
    right, wrong = np.float32([1, 0]), np.float32([0, 1])
    reference = np.stack([right, right, right, right, wrong, wrong])
    engine = np.stack([right, wrong, wrong, wrong, right, wrong])
    found = measure(in_turn(reference), in_turn(engine), labels, SMALL, 6)
    assert (found.lost, found.gained) == (3, 1)
    assert found.drop == pytest.approx(100 * (found.lost - found.gained) / 6)


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (0, 5, 2 / 2**5),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),  # twice the tail of a fair coin: 0, 1 or 2 of 10
    ],
)
def test_the_paired_test_is_a_fair_coins(lost: int, gained: int, p_value: float) -> None:
    found = Accuracy(1000, 80.0, 95.0, 80.0 - (lost - gained) / 10, 95.0, 99.0, lost, gained)
    assert found.p_value == pytest.approx(p_value)
    assert found.to_dict()["p_value"] == found.p_value


@pytest.mark.parametrize("hits", [0, 1, 40, 50])
def test_intervals_are_wilsons(hits: int) -> None:
    n, z = 50, 1.959963984540054
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    found = accuracy(hits, 50, n).to_dict()
    assert found["reference_top1_interval"] == pytest.approx(
        [100 * (centre - half), 100 * (centre + half)], abs=1e-9
    )
    assert found["engine_top1_interval"][1] == pytest.approx(100)


# --------------------------------------------------------------------------------------------------------- limits


def accuracy(reference: int, engine: int, of: int, agreement: float = 100.0) -> Accuracy:
    return Accuracy(of, 100 * reference / of, 100.0, 100 * engine / of, 100.0, agreement)


def test_limits() -> None:
    worse = accuracy(80, 79, 100, 97.5)
    worse.require()
    worse.require(1.0, 97.5)
    with pytest.raises(
        GateError, match=r"top-1 falls by 1\.00 points, from 80\.00 to 79\.00 % on 100 images"
    ):
        worse.require(max_drop=0.99)
    with pytest.raises(GateError, match=r"agree on 97\.50 % of 100 images \(--min-agreement 98\)"):
        worse.require(min_agreement=98)
    accuracy(79, 80, 100).require(max_drop=0.0)


def test_a_limit_kept_exactly_is_kept() -> None:
    """100 · 801 / 1000 − 100 · 796 / 1000 is a little over 0.5 in floating point, for some pair of counts it is."""
    beyond = [n for n in range(5, 1000) if 100 * n / 1000 - 100 * (n - 5) / 1000 > 0.5]
    assert beyond, "no pair of counts that floating point puts beyond the limit: the test shows nothing"
    for count in range(5, 1000):
        accuracy(count, count - 5, 1000).require(max_drop=0.5)
        with pytest.raises(GateError):
            accuracy(count, count - 6, 1000).require(max_drop=0.5) if count > 5 else accuracy(
                6, 0, 1000
            ).require(0.5)


def test_a_limit_of_nan_passes_nothing() -> None:
    with pytest.raises(GateError):
        accuracy(80, 80, 100).require(max_drop=float("nan"))
    with pytest.raises(GateError):
        accuracy(80, 80, 100).require(min_agreement=float("nan"))


GOOD = {"classes": 10, "present": 10, "majority": 11.0, "reference_classes": 10, "engine_classes": 10}


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"reference_top1": 11.1, "engine_top1": 11.1}, "PyTorch has 11.10 % top-1 on these images"),
        ({"reference_classes": 1, "engine_classes": 1}, "PyTorch gives all 500 images one class"),
        ({"present": 1, "majority": 100.0, "engine_classes": 1}, "the engine gives all 500 images one class"),
        ({"alike": True}, "all 500 images give the same logits"),
        ({"ties": 400}, "for 400 of 500 images several classes have the same highest logit"),
    ],
)
def test_a_limit_that_any_engine_keeps_is_not_kept(figures: dict[str, Any], words: str) -> None:
    found = Accuracy(**{**dict(images=500, reference_top1=80.0, reference_top5=None, engine_top1=80.0, engine_top5=None, agreement=100.0), **GOOD, **figures})  # fmt: skip
    assert any(words in doubt.text for doubt in found.doubts())
    assert any(words in text for text in found.to_dict()["doubts"])
    for limit in ({"max_drop": 1.0}, {"min_agreement": 99.0}):
        with pytest.raises(GateError, match="the limit is kept, and that proves nothing: "):
            found.require(**limit)
        found.require(**limit, rehearsal=True)
    found.require()  # nothing was asked


def test_few_images_and_one_class_are_no_reason_to_stop() -> None:
    for figures in (
        {"images": 11, "reference_top1": 40.0, "engine_top1": 40.0},
        {"present": 1, "majority": 100.0},
    ):
        found = Accuracy(**{**dict(images=500, reference_top1=80.0, reference_top5=None, engine_top1=80.0, engine_top5=None, agreement=100.0), **GOOD, **figures})  # fmt: skip
        assert found.doubts()
        found.require(max_drop=1.0, min_agreement=99.0)
