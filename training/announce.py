"""What a run says before its first step: its data, what it makes of what, and how long that is likely to take."""

from __future__ import annotations

from sit_deploy.data.ignored_orientation import ignored_orientation_note
from sit_deploy.models.comparison import Comparison, ModelCost
from sit_deploy.models.data_config import describe
from training.make_models import Models
from training.run import Run
from training.state import Position


def compare(models: Models) -> Comparison:
    """Return what a run makes, beside its teacher or, where it has none, beside the same model unslimmed."""
    ours = ModelCost.of_model(models.config, models.model)
    if models.teacher is not None and models.teacher_config is not None:
        return Comparison(ours, ModelCost.of_model(models.teacher_config, models.teacher))
    if len(models.config.stage_blocks) == 1:
        return Comparison(ours)
    whole = Comparison.of(models.config, ours.image_size, ours.num_classes).unslimmed
    return Comparison(ours, whole)


def announce(run: Run) -> None:
    """Say what is going to be done, before it is: nothing can be refused any more."""
    for note in run.data.notes:
        run.reporter.note(note)
    _say_preprocessing(run)
    run.reporter.note(_makes(run))
    run.reporter.note(run.plan.text())
    if warning := run.plan.warning():
        run.reporter.warn(warning)
    for text in run.notes:
        run.reporter.note(text)
    for text in run.warnings:
        run.reporter.warn(text)
    if run.position.epoch or run.position.step:
        going_on = f"Going on {where(run.position)} of {run.epochs}"
        run.reporter.note("The run is finished" if run.position.epoch == run.epochs else going_on)


def _makes(run: Run) -> str:
    """Say what comes of the run, and what it saves."""
    saving = run.cost.saving("its teacher" if run.models.teacher is not None else "the unslimmed")
    return f"Makes {run.cost.model.text}{f'; {saving}' if saving else ''}"


def where(position: Position) -> str:
    """Say where a run is."""
    return f"after step {position.step} of epoch {position.epoch + 1}"


def _say_preprocessing(run: Run) -> None:
    """Say how pictures are prepared, who says so, and what of it is doubtful."""
    choice, data = run.models.choice, run.data
    run.reporter.note(f"Preprocessing: {describe(choice.preprocessing.to_dict(), choice.sources)}")
    for note in choice.notes:
        run.reporter.warn(note)
    files = [sample for part in (data.train, data.val) for sample in getattr(part, "samples", ())]
    if lying := ignored_orientation_note(files, choice.preprocessing, "train it with"):
        run.reporter.warn(lying)
