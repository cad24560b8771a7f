"""The whole way at a small scale: a teacher from scratch, a student distilled from it, its engine, and how they compare.

On scikit-learn's handwritten digits, which come with it: nothing is downloaded and no GPU is needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import GateError, InputError
from sit_deploy.report.read import read_build_report

if TYPE_CHECKING:
    from sit_deploy.report.build_types import AccuracyRecord

TEACHER, STUDENT = "lvvit_nano", "sit_nano"
MAX_DROP = 1.0  # points of top-1 that the student may lose


@dataclass(frozen=True)
class MeasuredModel:
    """A model that the quickstart has measured.

    Attributes:
        what: the model's part in it: teacher, student, or precision and engine.
        model: its name.
        top1: on the held-out digits, in percent.
        agreement: images that the teacher gives the same class, in percent.
        macs: multiply-accumulates of one image.
        size: of its file, in bytes.
    """

    what: str
    model: str
    top1: float
    agreement: float
    macs: int
    size: int


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart measured on `images` held-out digits, and how long it took."""

    entries: tuple[MeasuredModel, ...]
    images: int
    bundle: Path
    curves: tuple[Path, Path]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self), default=str))


def quickstart(
    output: Path,
    seed: int = 0,
    reporter: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
    overrides: tuple[tuple[str, Any], ...] = (),
) -> QuickstartResult:
    """Train, distil, build, and compare; a run that was interrupted goes on where it stopped.

    Args:
        output: folder for the two runs, the digits as image files, and the bundle.
        seed: of both trainings.
        reporter: shows the trainings (see `training.reporter.Reporter`).
        progress: shows the build.
        overrides: fields of both recipes to change.

    Raises:
        GateError: the student, or its engine, lost more than a point of accuracy; one of them or the teacher is hardly better
            than guessing; or a step of the build is out of tolerance.
        InputError: a folder that cannot be written, or that another quickstart is at work in.
    """
    from training.run_files import locked_folder

    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is not a folder; choose another with -o")
    with locked_folder(output):
        return _quickstart(output, seed, reporter, progress, overrides)


def _quickstart(
    output: Path,
    seed: int,
    reporter: Any,
    progress: Callable[[str, int, int], None] | None,
    overrides: tuple[tuple[str, Any], ...],
) -> QuickstartResult:
    from sit_deploy.bundle import is_bundle
    from sit_deploy.pipeline.build import build
    from sit_deploy.pipeline.request import BuildRequest
    from training import TrainRequest, train

    started = time.perf_counter()
    teacher_run, student_run, bundle = output / "teacher", output / "student", output / "bundle"
    if bundle.exists() and not is_bundle(bundle):
        raise InputError(f"{bundle} has other files in it; choose another -o")
    common: dict[str, Any] = {
        "data": "digits", "seed": seed, "resume": True, "overrides": overrides,
        "channels_last": True,  # a tenth faster on a CPU
    }  # fmt: skip
    teacher = train(TrainRequest(model=TEACHER, output=teacher_run, **common), reporter)
    student = train(
        TrainRequest(model=STUDENT, output=student_run, teacher=teacher.weights, **common), reporter
    )
    val, calibration = write_digits(output / "digits")
    request = BuildRequest(
        model=None,
        checkpoint=student.weights,
        precision="fp16",
        output=bundle,
        calib_data=calibration,
        calib_images=32,
        val_data=val,
        force=True,
    )
    built = build(request, progress)
    accuracy = read_build_report(built).accuracy
    assert accuracy is not None  # images were given
    entries = (
        MeasuredModel("teacher", TEACHER, teacher.student.top1, 100.0, teacher.student.macs, _bytes(teacher.weights)),
        MeasuredModel("student", STUDENT, student.student.top1, student.agreement, student.student.macs, _bytes(student.weights)),
        MeasuredModel(
            f"fp16, {accuracy.measured_on}",
            STUDENT,
            accuracy.engine_top1,
            _agreement(built, teacher.weights, val),
            student.student.macs,
            _bytes(built.engine_path),
        ),
    )  # fmt: skip
    result = QuickstartResult(
        entries, student.images, built.path, (teacher.curves, student.curves), time.perf_counter() - started
    )
    _require_worth(entries, accuracy, student_run)
    return result


def _require_worth(entries: tuple[MeasuredModel, ...], accuracy: AccuracyRecord, run: Path) -> None:
    """Refuse what lost too much against the teacher, and what nobody could tell from guessing: it has nothing to lose.

    Args:
        entries: of the comparison.
        accuracy: of the build's report, for the classes and the images.
        run: the student's.
    """
    from sit_deploy.measure.accuracy import interval
    from sit_deploy.measure.chance import by_chance

    teacher = entries[0]
    for entry in entries:
        low = interval(entry.top1, accuracy.images)[0]
        if reason := by_chance(f"the {entry.what}", entry.top1, low, accuracy):
            raise GateError(f"{reason.text}; the student's run is in {run}")
        drop = teacher.top1 - entry.top1
        if entry is not teacher and not drop <= MAX_DROP:
            raise GateError(
                f"the {entry.what} lost {drop:.2f} points of top-1, more than {MAX_DROP:g}; its run is in {run}"
            )


def _bytes(path: Path) -> int:
    return path.stat().st_size


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Write the held-out digits as folder/val/CLASS/*.png and 32 training ones as folder/calibration/*.png."""
    from sit_deploy.data.datasets import open_data

    data = open_data("digits")
    val, calibration = folder / "val", folder / "calibration"
    for name in data.classes or ():
        (val / name).mkdir(parents=True, exist_ok=True)
    calibration.mkdir(parents=True, exist_ok=True)
    for i, (image, label) in enumerate(data.val):
        image.save(val / str(label) / f"{i:04d}.png")
    for i in range(32):
        data.train[i][0].save(calibration / f"{i:04d}.png")
    return val, calibration


def _agreement(bundle: Any, teacher: Path, val: Path) -> float:
    """Return the percent of held-out digits that the bundle's graph and the teacher give the same class."""
    from sit_deploy.data.image_folder import ImageFolder
    from sit_deploy.inference import Classifier, graph_on_onnxruntime
    from sit_deploy.measure.accuracy import measure
    from sit_deploy.models import load_model
    from sit_deploy.pipeline.logits import torch_logits

    model, samples = load_model(TEACHER, teacher).model, ImageFolder(val).samples
    with (
        graph_on_onnxruntime(bundle.model_path) as runner,
        Classifier(runner, bundle.batch_range) as classify,
    ):
        accuracy = measure(
            lambda images: torch_logits(model, images), classify.logits, samples, bundle.preprocessing(), 32
        )
    return accuracy.agreement
