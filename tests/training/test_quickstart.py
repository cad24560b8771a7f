"""The quickstart: every figure of its result against the files that it left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import GateError, InputError
from sit_deploy.inference import Classifier, graph_on_onnxruntime
from sit_deploy.measure.accuracy import measure
from sit_deploy.models import load_model
from sit_deploy.pipeline.logits import torch_logits
from tests.helpers.train import without_curves
from training.quickstart import MeasuredModel, QuickstartResult, _require_worth, quickstart, write_digits

pytestmark = pytest.mark.usefixtures("small_nano")

QUICK = (("epochs", 1), ("warmup_epochs", 0), ("batch_size", 32))


@pytest.fixture(autouse=True, scope="module")
def few_digits() -> Iterator[None]:
    """128 digits to train on and 60 held out, and not ten times as many: whether it learns is measured by hand, not here."""
    from sit_deploy.data import datasets

    def few() -> datasets.Data:
        data = digits()
        parts = [
            datasets.ArrayImages(part.pixels[:count], part.labels[:count])
            for part, count in ((data.train, 128), (data.val, 60))
        ]
        return datasets.Data(data.name, *parts, data.classes, data.num_classes)

    digits = datasets._digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_digits", few)
        yield


@pytest.fixture(scope="module")
def made(few_digits: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuickstartResult]:
    """A whole run. What it learnt in so few steps is no better than guessing, which is not asked of it here."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.quickstart._require_worth", lambda *_: None)
        return folder, quickstart(folder, overrides=QUICK)


@pytest.mark.slow
def test_the_result_is_what_the_files_say(made: tuple[Path, QuickstartResult]) -> None:
    folder, result = made
    teacher = load_model("lvvit_nano", folder / "teacher" / "model.safetensors").model
    student = load_model("sit_nano", folder / "student" / "model.safetensors").model
    bundle = load_bundle(folder / "bundle")
    samples = ImageFolder(folder / "digits" / "val").samples
    preprocessing = bundle.preprocessing()

    def against_teacher(logits):
        return measure(lambda images: torch_logits(teacher, images), logits, samples, preprocessing, 32)

    of_student = against_teacher(lambda images: torch_logits(student, images))
    with (
        graph_on_onnxruntime(bundle.model_path) as runner,
        Classifier(runner, bundle.batch_range) as classify,
    ):
        of_engine = against_teacher(classify.logits)
    by_file = [
        (of_student.reference_top1, 100.0),
        (of_student.engine_top1, of_student.agreement),
        (of_engine.engine_top1, of_engine.agreement),
    ]
    assert [(e.top1, e.agreement) for e in result.entries] == [pytest.approx(pair) for pair in by_file]
    assert result.images == len(samples) == 60
    assert result.entries[0].macs > 1.5 * result.entries[1].macs
    assert result.entries[2].size == bundle.engine_path.stat().st_size
    assert json.loads(json.dumps(result.to_dict()))["entries"][0]["what"] == "teacher"
    assert all(curves.read_bytes().startswith(b"\x89PNG") for curves in result.curves)


@pytest.mark.slow
def test_started_again_it_trains_nothing_twice(
    made: tuple[Path, QuickstartResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it fails where a run is not worth it, with what it is held to: the entries of the result."""
    folder, result = made
    held: list[Any] = []

    def refuse(*facts: Any) -> None:
        held.extend(facts)
        raise GateError("not worth it")

    monkeypatch.setattr("training.quickstart._require_worth", refuse)
    runs = [folder / name / "last.pt" for name in ("teacher", "student")]
    before = [run.stat().st_mtime_ns for run in runs]
    with without_curves(), pytest.raises(GateError, match="not worth it"):
        quickstart(folder, overrides=QUICK)
    assert [run.stat().st_mtime_ns for run in runs] == before
    entries, accuracy, run = held
    assert (entries, run) == (result.entries, folder / "student")
    assert (accuracy.images, accuracy.engine_top1) == (60, entries[2].top1)


@pytest.mark.parametrize(
    ("top1", "words"),
    [
        ((95.0, 94.5, 94.5), None),
        ((95.0, 91.0, 91.0), "the student lost 4.00 points"),
        ((95.0, 95.0, 90.0), "the fp16, graph lost 5.00 points"),
        (
            (11.1, 11.1, 11.1),
            "the teacher has 11.10 % top-1 on these images, and guessing among 10 classes has 10.00 %",
        ),
        ((17.0, 17.0, 17.0), "that says nothing for it"),
    ],
)
def test_what_lost_too_much_and_what_had_nothing_to_lose(top1: tuple[float, ...], words: str | None) -> None:
    names = ("teacher", "student", "fp16, graph")
    entries = tuple(
        MeasuredModel(name, "x", value, 100.0, 1, 1) for name, value in zip(names, top1, strict=True)
    )
    facts: Any = SimpleNamespace(classes=10, majority=9.9, present=10, images=360)
    if words is None:
        _require_worth(entries, facts, Path("run"))
        return
    with pytest.raises(GateError) as caught:
        _require_worth(entries, facts, Path("run"))
    assert words in str(caught.value) and str(caught.value).endswith("run is in run")


def test_digits_as_files_are_the_held_out_ones(tmp_path: Path):
    import numpy as np
    from PIL import Image

    from sit_deploy.data.datasets import open_data

    val, calibration = write_digits(tmp_path)
    data = open_data("digits")
    files = sorted(val.glob("*/*.png"), key=lambda p: p.name)
    assert len(files) == len(data.val) and len(list(calibration.glob("*.png"))) == 32
    for i in (0, 17, len(files) - 1):
        image, label = data.val[i]
        assert files[i].parent.name == str(label)
        assert np.array_equal(np.asarray(Image.open(files[i])), np.asarray(image))


def test_taken_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        quickstart(tmp_path / "file")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        quickstart(tmp_path)
    assert not (tmp_path / "teacher").exists()
