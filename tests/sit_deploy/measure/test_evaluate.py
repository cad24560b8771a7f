from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.measure import evaluate as module
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.evaluate import Evaluation, evaluate, run_key
from sit_deploy.measure.resume import Notebook
from sit_deploy.measure.tally import Tally
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import Shard
from tests.sit_deploy.test_manifest import changed, places

SMALL = Preprocessing.for_model(32)


def by_colour(images: np.ndarray) -> np.ndarray:
    """Logits of three classes that depend on the pixels alone."""
    return images.mean(axis=(2, 3)) * 40


def almost(images: np.ndarray) -> np.ndarray:
    return by_colour(images) + 4 * images[:, :, 0, 0]


@pytest.fixture
def samples(make_image_folder: Callable[..., Path]) -> list[tuple[Path, int]]:
    return ImageFolder(make_image_folder(("a", "b", "c"), per_class=7)).samples


def run(samples: Any, **options: Any) -> Evaluation:
    return evaluate(by_colour, {"same": by_colour, "other": almost}, samples, SMALL, 4, **options)


def test_candidates_are_counted_apart(samples: Any) -> None:
    found = run(samples)
    assert found.done == 21 and found.tallies["same"].counts["agree"] == 21
    assert 0 < found.tallies["other"].counts["agree"] < 21
    assert sum(found.guesses.values()) == 21
    assert (
        sum(c for (label, best), c in found.guesses.items() if label == best)
        == (found.tallies["same"].counts["reference_top1"])
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_several_processes_add_up(size: int, samples: Any) -> None:
    whole = run(samples)
    parts = [run(samples, shard=Shard(rank, size)) for rank in range(size)]
    assert sum(part.done for part in parts) == 21
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for name in ("same", "other"):
        ours, theirs = merged.tallies[name], whole.tallies[name]
        assert (ours.counts, ours.by_class, ours.images) == (theirs.counts, theirs.by_class, theirs.images)
        assert [f.index for f in ours.flips] == [f.index for f in theirs.flips]
        assert [f.image for f in ours.flips] == [f.image for f in theirs.flips]
    assert merged.guesses == whole.guesses


def test_more_processes_than_images(samples: Any) -> None:
    with pytest.raises(InputError, match="no images"):
        run(samples[:1], shard=Shard(1, 2))


@pytest.fixture
def damaged_samples(samples: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The first, two within a batch of four, and the last cannot be read."""
    for at in (0, 9, 10, 20):
        samples[at][0].write_bytes(b"no picture")
    return samples


def test_images_that_cannot_be_read_are_left_out_and_named(damaged_samples: Any) -> None:
    with pytest.raises(InputError, match="4 images cannot be read, more than --max-damaged 3"):
        run(damaged_samples, damaged=DamagedImages(3))
    found = run(damaged_samples, damaged=DamagedImages(4))
    assert (found.done, found.tallies["same"].images, sum(found.guesses.values())) == (21, 17, 17)
    assert [one.image for one in found.damaged] == [str(damaged_samples[at][0]) for at in (0, 9, 10, 20)]
    left = [sample for at, sample in enumerate(damaged_samples) if at not in (0, 9, 10, 20)]
    assert found.tallies["other"].counts == run(left).tallies["other"].counts
    flips = found.tallies["other"].flips
    assert flips and all(flip.image == str(damaged_samples[flip.index][0]) for flip in flips)


@pytest.mark.parametrize("size", [2, 5])
def test_processes_add_up_what_they_left_out(size: int, damaged_samples: Any) -> None:
    parts = [run(damaged_samples, shard=Shard(rank, size), damaged=DamagedImages(4)) for rank in range(size)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert (merged.done, sum(merged.guesses.values())) == (21, 17)
    assert {one.image for one in merged.damaged} == {str(damaged_samples[at][0]) for at in (0, 9, 10, 20)}
    few = DamagedImages(3)
    with pytest.raises(InputError, match="4 images cannot be read, more than --max-damaged 3; the last: "):
        few.recall(merged.damaged)


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_a_run_over_damaged_images_goes_on(
    batches: int, damaged_samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the first part are remembered, and count against the limit."""
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)
    book = Notebook(tmp_path / "progress.json", run_key("this"))
    with pytest.raises(StopError):
        evaluate(
            by_colour, {"same": stopping_after(batches), "other": almost}, damaged_samples, SMALL, 4, notebook=book,
            damaged=DamagedImages(4),
        )  # fmt: skip
    again = DamagedImages(4)
    found = run(damaged_samples, notebook=book, damaged=again)
    assert found.to_dict() == run(damaged_samples, damaged=DamagedImages(4)).to_dict()
    assert len(again.found) == 4
    ended = run(damaged_samples, notebook=book, damaged=(last := DamagedImages(4)))
    assert ended.to_dict() == found.to_dict() and len(last.found) == 4
    with pytest.raises(InputError, match="more than --max-damaged 2"):
        run(damaged_samples, notebook=book, damaged=DamagedImages(2))


def test_nothing_but_damaged_images(samples: Any) -> None:
    for path, _ in samples:
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 21 images can be read"):
        run(samples, damaged=DamagedImages(50))


class StopError(Exception):
    pass


def stopping_after(batches: int) -> Callable[[np.ndarray], np.ndarray]:
    left = iter(range(batches))

    def logits(images: np.ndarray) -> np.ndarray:
        if next(left, None) is None:
            raise StopError
        return by_colour(images)

    return logits


def test_a_run_that_was_stopped_goes_on(
    samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", -1)
    book = Notebook(tmp_path / "progress.json", run_key("this"))
    candidates = {"same": stopping_after(3), "other": almost}
    with pytest.raises(StopError):
        evaluate(by_colour, candidates, samples, SMALL, 4, notebook=book)
    noted = book.read({"same", "other"}, 21)
    assert noted is not None and noted["done"] == 12
    assert [path.name for path in tmp_path.glob("*progress*")] == ["progress.json"]
    seen: list[tuple[int, int]] = []
    again = evaluate(
        by_colour,
        {"same": by_colour, "other": almost},
        samples,
        SMALL,
        4,
        lambda _, done, total: seen.append((done, total)),
        notebook=book,
    )
    assert again.to_dict() == run(samples).to_dict()
    assert seen == [(16, 21), (20, 21), (21, 21)]
    # a run that had ended needs neither side again
    none = stopping_after(0)
    assert evaluate(none, {"same": none}, samples, SMALL, 4, notebook=book).to_dict() == again.to_dict()


def test_progress_of_another_run_is_refused(samples: Any, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    run(samples, notebook=Notebook(path, run_key("this")))
    with pytest.raises(InputError, match="is of another run"):
        run(samples, notebook=Notebook(path, run_key("that")))
    before = path.read_text()
    for text, match in (
        ("{", "cannot be read"),
        ("[]", "no record"),
        (json.dumps({"schema": 99}), "no record"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            run(samples, notebook=Notebook(path, run_key("this")))
    assert before != path.read_text() == json.dumps({"schema": 99})


def test_every_field_of_a_notebook_is_checked(tmp_path: Path) -> None:
    """What is counted in it ends in an accuracy: it is believed if it adds up, and refused in one line if not."""
    path = tmp_path / "progress.json"
    tally = Tally()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4))
    tally.add(logits, logits[:, ::-1].copy(), np.arange(6) % 4, [f"{i}.png" for i in range(6)], range(6))
    guesses = Counter(zip((np.arange(6) % 4).tolist(), logits.argmax(1).tolist(), strict=True))
    Notebook(path, "k").write(Evaluation({"engine": tally}, guesses, 6).to_dict())
    whole = json.loads(path.read_text())
    book = Notebook(path, "k")
    assert Evaluation.from_dict(book.read({"engine"}, 6) or {}).tallies["engine"].flips == tally.flips
    taken = refused = 0
    for place in places(whole):
        for to in (..., [], {}, None, -1, 10**6, 1e308, "x", True, 10**30, [[]], {"x": {}}):
            path.write_text(json.dumps(changed(whole, place, to)))
            try:
                noted = book.read({"engine"}, 6)
            except InputError as error:
                assert re.fullmatch(
                    rf"{path}[^\n]+; (remove it, or )?pass another --resume FILE", str(error)
                ) or "of another run" in str(error)
                refused += 1
                continue
            found = Evaluation.from_dict(noted or {})
            accuracy = Accuracy.of(found.tallies["engine"])
            json.dumps(accuracy.to_dict([*"abcd"]))
            taken += 1
    assert refused > 200 and taken > 20, (refused, taken)
    for names, images in (({"engine"}, 5), ({"other"}, 6), ({"engine", "teacher"}, 6)):
        path.write_text(json.dumps(whole))
        with pytest.raises(InputError, match=r"has counted 6 of \d images of engine, not of"):
            book.read(names, images)
    for text in (
        "",
        "[" * 100_000,
        "[]",
        '{"schema": 2, "evaluation": {}}',
        '{"schema": 2, "key": "k", "evaluation": NaN}',
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"^[^\n]+$"):
            book.read({"engine"}, 6)
