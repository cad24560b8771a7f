"""The stages of a bundle, measured: teacher → student → deploy form → ONNX → precision → engine, what each costs and gives.

A report calls their table the ledger. All stages see the same images in one pass, and take turns at being timed, so that a loss
is blamed on the right one.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from engines.timing import TimingOptions, WorkerResult, alternate
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.evaluate import Evaluation, evaluate
from sit_deploy.measure.neighbours import Neighbours, compare_neighbours
from sit_deploy.models.hub import local_file
from sit_deploy.validation.reference import TeacherSource
from sit_deploy.validation.stage_setup import BundleStages, StageBuilder, StageSetup
from sit_deploy.validation.torch_worker import torch_device

if TYPE_CHECKING:
    import onnx

    from sit_deploy.data.labelled import Labelled


SYNTHETIC = 32  # images where no others are given: they say how near the logits are, and nothing of accuracy


@dataclass(frozen=True)
class StageRow:
    """A stage. Accuracy is in percent, None without labelled images; agreement and SQNR are with the student in PyTorch.

    Attributes:
        size: bytes of the file that has the weights.
        macs: of one image.
        nearest: of a bundle without logits, percent of images whose nearest other has their label; `agreement` is then of those labels, or
            of the nearest images where there are none.
        cosine, lowest_cosine: of its vectors and the reference's.
        latency_ms: median of a batch over the rounds; None where it was not timed, which `note` explains.
    """

    name: str
    runtime: str
    size: int
    macs: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    note: str = ""
    nearest: float | None = None
    cosine: float | None = None
    lowest_cosine: float | None = None


@dataclass
class StageTable:
    """What was measured of one bundle. `to_dict` has `given` too: how many classes the student gives.

    Attributes:
        engine: name of the stage that stands for what is shipped; not the engine itself where that cannot run here.
        accuracy: of that stage, None without labelled images.
        evaluation, timing: what the rows were made from; no evaluation of a bundle without logits.
        neighbours: of the stage `engine`, of a bundle without logits.
        float_graph: the FP32 graph, exported again.
    """

    entries: list[StageRow]
    engine: str
    images: int
    batch_size: int
    accuracy: Accuracy | None
    evaluation: Evaluation | None
    float_graph: onnx.ModelProto
    timing: dict[str, WorkerResult] = field(default_factory=dict)
    neighbours: Neighbours | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, under the names of a report."""
        return {
            "entries": [_fields(entry, self.neighbours is not None) for entry in self.entries],
            "engine": self.engine,
            "images": self.images,
            "batch_size": self.batch_size,
            "given": None if self.evaluation is None else len({best for _, best in self.evaluation.guesses}),
        }


_OF_VECTORS = ("nearest", "cosine", "lowest_cosine")


def _fields(row: StageRow, embeds: bool) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if embeds or name not in _OF_VECTORS}


def measure_stages(
    bundle: Bundle,
    samples: Labelled | None = None,
    *,
    teacher: TeacherSource | None = None,
    checkpoint: Path | None = None,
    timing: TimingOptions | None = None,
    progress: Progress | None = None,
) -> StageTable:
    """Measure every stage of a bundle.

    Args:
        bundle: whose stages they are.
        samples: labelled images; without them the stages are compared on synthetic ones, and have no accuracy.
        teacher: what the bundle's model was distilled from; of a bundle its engine is a stage too.
        checkpoint: see `reference.reference_weights`.
        timing: turns of each stage at being timed, and what it runs on; with no round, nothing is timed.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        InputError: weights that are not there, a teacher that does not fit, or an image that cannot be read.
        GateError: a stage gives NaN or infinity.
    """
    from sit_deploy.data.synthetic import synthetic_images

    timing = timing or TimingOptions()
    teacher, checkpoint = teacher and teacher.fetched(), local_file(checkpoint)
    if teacher is not None and teacher.is_bundle:
        _require_same_input(bundle, load_bundle(teacher.source))
    report = progress or (lambda *_: None)
    labelled, damaged = samples is not None, samples.damaged if samples is not None else None
    output, embeds = bundle.outputs[0].name, not bundle.manifest.has_logits
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as temporary:
        with contextlib.ExitStack() as opened:
            report("Preparing every hop", 0, 0)
            torch_on = _torch_device(bundle, timing)
            builder = StageBuilder(bundle, Path(temporary), checkpoint, timing, torch_on, opened)
            ready = builder.build(teacher)
            report("Preparing every hop", 1, 1)
            given = samples if labelled else [(image, 0) for image in synthetic_images(SYNTHETIC)]
            candidates = {
                stage.name: stage.run for stage in ready.stages if stage.run and not stage.is_reference
            }
            how = (bundle.preprocessing(), max(8, bundle.batch_size), _named(report, "Measuring every hop"))
            if embeds:
                neighbours = compare_neighbours(
                    output, ready.student, candidates, given, *how, damaged=damaged
                )
            else:
                evaluation = evaluate(ready.student, candidates, given, *how, damaged=damaged)
        # out here their sessions are closed: idle threads would slow what is timed
        workers = {stage.name: stage.worker for stage in ready.stages if stage.worker}
        timed = alternate(workers, timing, _named(report, "Timing every hop")) if timing.rounds else {}
    if embeds:
        return _table_of_vectors(ready, neighbours, timed, bundle.batch_size)
    return _table(ready, evaluation, timed, bundle.batch_size, labelled)


def _torch_device(bundle: Bundle, timing: TimingOptions) -> tuple[str, str]:
    """Return where PyTorch runs and in what type: beside the engine, unless there is no GPU."""
    device, dtype = torch_device(bundle.manifest.engine.kind, timing.device, bundle.manifest.precision)
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            return "cpu", "float32"
    return device, dtype


def _require_same_input(bundle: Bundle, teacher: Bundle) -> None:
    """Refuse a teacher's bundle whose engine could not see the same batches of the same images."""
    for what, ours, theirs in (
        ("engine", bundle.manifest.engine.kind, teacher.manifest.engine.kind),
        ("batch", bundle.manifest.batch, teacher.manifest.batch),
        ("preprocessing", bundle.preprocessing(), teacher.preprocessing()),
    ):
        if ours != theirs:
            raise InputError(
                f"the teacher {teacher.path} has another {what} than {bundle.path}; build it with the same, or give its checkpoint"
            )


def _named(report: Progress, step: str) -> Progress:
    return lambda _, done, total: report(step, done, total)


def _table(
    ready: BundleStages,
    evaluation: Evaluation,
    timing: dict[str, WorkerResult],
    batch_size: int,
    labelled: bool,
) -> StageTable:
    rows = [_row(stage, evaluation, timing.get(stage.name), labelled) for stage in ready.stages]
    shipped = [stage.name for stage in ready.stages if stage.run][-1]
    accuracy = Accuracy.of(evaluation.tallies[shipped]) if labelled else None
    measured = evaluation.done - len(evaluation.damaged)
    return StageTable(rows, shipped, measured, batch_size, accuracy, evaluation, ready.float_graph, timing)


def _table_of_vectors(
    ready: BundleStages, neighbours: dict[str, Neighbours], timing: dict[str, WorkerResult], batch_size: int
) -> StageTable:
    rows = []
    for stage in ready.stages:
        row = StageRow(stage.name, stage.runtime, stage.size, stage.macs, note=stage.note)
        if timed := timing.get(stage.name):
            row = replace(row, latency_ms=timed.stats.p50_ms)
        if stage.is_reference:
            any_side = next(iter(neighbours.values()))
            agreement = None if any_side.agreement is None else 100.0
            row = replace(row, agreement=agreement, nearest=any_side.reference, cosine=1.0, lowest_cosine=1.0)
        elif found := neighbours.get(stage.name):
            row = replace(
                row,
                agreement=found.agreement,
                nearest=found.engine,
                cosine=found.cosine_mean,
                lowest_cosine=found.cosine_min,
            )
        rows.append(row)
    shipped = [stage.name for stage in ready.stages if stage.run][-1]
    own = neighbours[shipped]
    return StageTable(
        rows, shipped, own.images, batch_size, None, None, ready.float_graph, timing, neighbours=own
    )


def _row(stage: StageSetup, evaluation: Evaluation, timed: WorkerResult | None, labelled: bool) -> StageRow:
    row = StageRow(stage.name, stage.runtime, stage.size, stage.macs, note=stage.note)
    if stage.run:
        if stage.is_reference:  # what every tally has as its reference
            accuracy = Accuracy.of(next(iter(evaluation.tallies.values())))
            top1, top5, agreement, noise = accuracy.reference_top1, accuracy.reference_top5, 100.0, None
        else:
            accuracy = Accuracy.of(evaluation.tallies[stage.name])
            top1, top5 = accuracy.engine_top1, accuracy.engine_top5
            agreement, noise = accuracy.agreement, accuracy.sqnr_db
        row = replace(row, agreement=agreement, sqnr_db=noise)
        if labelled:
            row = replace(row, top1=top1, top5=top5)
    return replace(row, latency_ms=timed.stats.p50_ms) if timed else row
