"""Everything there is to say of a bundle on this machine, measured: what a report is made from."""

from __future__ import annotations

import base64
import datetime
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import engines
from engines.base import Progress
from engines.speedup import speedup
from engines.timing import TimingOptions, machine
from sit_deploy.bundle import Bundle
from sit_deploy.data.labelled import Labelled
from sit_deploy.doctor import versions
from sit_deploy.measure.accuracy import Accuracy, interval
from sit_deploy.measure.baseline import find_doubts
from sit_deploy.performance import Threads
from sit_deploy.report.read import read_build_report
from sit_deploy.report.types import SCHEMA, Evidence, Stage
from sit_deploy.validation.bench import time_around
from sit_deploy.validation.reference import TeacherSource
from sit_deploy.validation.stages import StageTable, measure_stages

THUMBNAIL = 160  # pixels of a flipped image in the report
_LAYERS = 200  # the slowest; the rest adds nothing to see


def gather(
    bundle: Bundle,
    samples: Labelled | None = None,
    *,
    teacher: TeacherSource | None = None,
    checkpoint: Path | None = None,
    timing: TimingOptions | None = None,
    progress: Progress | None = None,
) -> Evidence:
    """Measure a bundle.

    Args:
        bundle: what is measured.
        samples: labelled images.
        teacher: see `measure_stages`.
        checkpoint: likewise.
        timing: likewise; on the threads that the bundle was built for where it says none.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        InputError, GateError: as `measure_stages`.
    """
    timing = timing or TimingOptions()
    run_on = Threads.of(bundle, timing.threads)
    timing = replace(timing, threads=run_on.count)
    threads, device = timing.threads, timing.device
    build = read_build_report(bundle)  # before anything is measured
    table = measure_stages(
        bundle,
        samples,
        teacher=teacher,
        checkpoint=checkpoint,
        timing=timing,
        progress=progress,
    )
    report = progress or (lambda *_: None)
    report("Looking into the layers", 0, 0)
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle": str(bundle.path),
        "name": bundle.path.resolve().name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "build": build.to_dict(),
        "slimming": bundle.manifest.model.slimming,
        "bytes": bundle.manifest.bytes,
        "golden": _golden(bundle, threads, device),
        "ledger": table.to_dict(),
        "accuracy": _accuracy(bundle, table, samples),
        **({} if table.neighbours is None else {"embedding": _embedding(table, samples)}),
        "timing": {
            name: {**asdict(result.stats), "histogram": asdict(result.histogram)}
            for name, result in table.timing.items()
        },
        "around": asdict(time_around(bundle)),
        "speedups": _speedups(bundle, table),
        "drift": _drift(bundle, table),
        "layers": _layers(bundle, threads, device),
        "threads": threads,
        "threads_note": run_on.note,
        "machine": asdict(machine()),
        "versions": versions(),
    }
    report("Looking into the layers", 1, 1)
    return Evidence.from_dict(fields)


def _runs_here(bundle: Bundle) -> bool:
    return engines.get(bundle.manifest.engine.kind).probe().can_run


def _golden(bundle: Bundle, threads: int | None, device: str | None) -> dict[str, Any] | None:
    from sit_deploy.inference import load
    from sit_deploy.validation.checks import check_golden

    if not _runs_here(bundle):
        return None
    with load(bundle, threads=threads, device=device) as classifier:
        return check_golden(bundle, classifier).to_dict()


def _accuracy(bundle: Bundle, table: StageTable, samples: Labelled | None) -> dict[str, Any] | None:
    if table.accuracy is None or table.evaluation is None or samples is None:
        return None
    accuracy = table.accuracy
    manifest = bundle.manifest
    fields = accuracy.to_dict(manifest.classes)
    doubt = find_doubts(accuracy, manifest.weights, manifest.model, table.evaluation.guesses, samples)
    for flip in fields["flips"]:
        flip["picture"] = _thumbnail(bundle, samples[flip["index"]][0])
    return {
        **fields,
        "measured_on": table.engine,
        "data": samples.name,
        "warning": doubt.warning,
        "notes": list(samples.remarks),
        "teacher": _teacher(table),
    }


def _embedding(table: StageTable, samples: Labelled | None) -> dict[str, Any]:
    """Return the figures of vectors, with the 95 % interval of each share."""
    found = table.neighbours
    assert found is not None
    paired, intervals = None, (None, None)
    if found.reference is not None and found.engine is not None:
        paired = {"images": found.images, "lost": found.lost, "gained": found.gained, "drop": found.drop}
        intervals = tuple(list(interval(share, found.images)) for share in (found.reference, found.engine))
    return {
        "output": found.output,
        "measured_on": table.engine,
        "data": samples.name if samples is not None else None,
        "images": found.images,
        "classes": found.classes,
        "reference": found.reference,
        "engine": found.engine,
        "reference_interval": intervals[0],
        "engine_interval": intervals[1],
        "same_label": found.same_label,
        "same_neighbour": found.same_neighbour,
        "cosine_min": found.cosine_min,
        "cosine_mean": found.cosine_mean,
        "farthest": found.farthest,
        "paired": paired,
        "majority": found.majority,
        "alone": found.alone,
        "notes": list(samples.remarks) if samples is not None else [],
    }


def _teacher(table: StageTable) -> dict[str, Any] | None:
    """Return the teacher's accuracy beside the student's, where it was measured.

    Lost and gained are images that only the teacher, and only the student, classifies right.
    """
    assert table.evaluation is not None
    tally = table.evaluation.tallies.get(Stage.TEACHER.value)
    if tally is None:
        return None
    accuracy = Accuracy.of(tally)  # the student is what the teacher was compared with
    return {
        "top1": accuracy.engine_top1,
        "top1_interval": list(accuracy.interval(accuracy.engine_top1)),
        "retained": _share(accuracy.reference_top1, accuracy.engine_top1),
        "drop": -accuracy.drop,
        "lost": accuracy.gained,
        "gained": accuracy.lost,
        "images": accuracy.images,
    }


def _share(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def _thumbnail(bundle: Bundle, source: Any) -> str:
    """Return what the model sees of an image, as the data URI of a small JPEG."""
    from PIL import Image

    from sit_deploy.preprocessing import load_image

    image = source if isinstance(source, Image.Image) else load_image(source)
    picture = Image.fromarray(bundle.preprocessing().pixels(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _speedups(bundle: Bundle, table: StageTable) -> dict[str, Any]:
    """Return how many times as fast the engine is as each other hop: `engines.speedup.Speedup.to_dict`."""
    kind = bundle.manifest.engine.kind
    engine = table.timing.get(Stage.of_engine(kind))
    if engine is None:
        return {}
    macs = {stage.name: stage.macs for stage in table.entries}
    ours = macs[Stage.of_engine(kind)]
    return {
        name: speedup(result, engine, (name, "the engine"), macs[name] / ours).to_dict()
        for name, result in table.timing.items()
        if result is not engine
    }


def _drift(bundle: Bundle, table: StageTable) -> dict[str, Any]:
    """Return the error along the residual stream, or why there is none to tell."""
    from sit_deploy.validation.drift import compare_stream

    try:
        comparison = compare_stream(table.float_graph, bundle, bundle.golden()[0])
    except engines.EngineNotInstalledError as error:
        return {"note": str(error), "tensors": []}
    return {"note": "", **comparison.to_dict()}


def _layers(bundle: Bundle, threads: int | None, device: str | None) -> list[dict[str, Any]]:
    """Return layer, operator and milliseconds of the engine's slowest layers; none where it does not run here."""
    from sit_deploy.measure.layers import bundle_layers

    return bundle_layers(bundle, threads, device)["layers"][:_LAYERS] if _runs_here(bundle) else []
