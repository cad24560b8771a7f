"""`sit-deploy bench`: a bundle's engine and the PyTorch reference timed turn about, each in a process of its own.

On a GPU both sides run there, with PyTorch in the type of the bundle, and two times are told apart: from images in host memory
to logits in host memory, and the GPU's own clock with the transfers left out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import engines
from engines.cpu import usable_cpus
from engines.gpus import telemetry_of
from engines.performance import Performance
from engines.speedup import Speedup, of_rounds, speedup, tail_doubt
from engines.timing import (
    Machine,
    TimingOptions,
    WorkerResult,
    WorkerSpec,
    alternate,
    engine_worker,
    machine,
    throughput_worker,
)
from sit_deploy import limits
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.calls import shows
from sit_deploy.doctor import versions
from sit_deploy.errors import InputError
from sit_deploy.models.hub import local_file
from sit_deploy.performance import Threads, batch_note, read_performance, require_several_at_once
from sit_deploy.schema import require_type
from sit_deploy.validation.reference import reference_weights, require_same_task
from sit_deploy.validation.torch_worker import TorchCall, torch_device

ROUNDS = 10  # turns of each side, where nothing else is asked for


@dataclass(frozen=True)
class Around:
    """What comes before and after the engine for one image, on one thread, in milliseconds (medians).

    Attributes:
        decode_ms: of a JPEG file.
        prepare_ms: of the preprocessing.
        classes_ms: from logits to the five best classes; None where there are no logits.
        image: what was decoded.
    """

    decode_ms: float
    prepare_ms: float
    classes_ms: float | None
    image: str


@dataclass(frozen=True)
class OverTeacher:
    """How much faster the engine is than its teacher's, beside how much less it computes.

    Attributes:
        speedup: by wall clock.
        gpu: the ratio by the GPU's clock, None without one, or where its rounds do not bear it out.
        macs_ratio: the teacher's multiply-accumulates over the student's.
    """

    bundle: Path
    model: str
    speedup: Speedup
    gpu: float | None
    macs_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        mine = {"bundle": str(self.bundle), "model": self.model}
        return {**mine, **self.speedup.to_dict(), "gpu": self.gpu, "macs_ratio": self.macs_ratio}


@dataclass(frozen=True)
class BenchResult:
    """An engine timed against PyTorch.

    Attributes:
        results: what was measured of each side, by name: "PyTorch", the engine's kind, the same for throughput where it
            was asked for, and "teacher" where there is one.
        side: the name of the engine as it was asked for, which the speed-ups are of.
        speedup: of the engine over PyTorch by wall clock.
        gpu_speedup: the ratio by the GPU's clock, None without one, or where its rounds do not bear it out.
        torch_device, torch_dtype: what PyTorch ran on and in.
        gpu_before, gpu_after: clocks, power and temperature, None without a GPU.
        over_latency: of throughput over the same engine one call after another, in images a second.
        notes: where it was not run as it was built for, or calls were stopped.
    """

    bundle: Path
    model: str
    precision: str
    engine: str
    batch_size: int
    threads: int | None
    cpus: tuple[int, ...] | None
    results: dict[str, WorkerResult]
    speedup: Speedup
    gpu_speedup: float | None
    over_teacher: OverTeacher | None
    around: Around
    torch_device: str
    torch_dtype: str
    gpu_before: dict[str, Any] | None
    gpu_after: dict[str, Any] | None
    machine: Machine
    versions: dict[str, str | None]
    side: str
    performance: str = "latency"
    over_latency: Speedup | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "cpus": list(self.cpus) if self.cpus else None,
            "results": {name: asdict(result) for name, result in self.results.items()},
            "speedup": {"engine": self.side, "over": "PyTorch", **self.speedup.to_dict()},
            "gpu_speedup": self.gpu_speedup,
            "over_teacher": self.over_teacher.to_dict() if self.over_teacher else None,
            "around": asdict(self.around),
            "pytorch": {"device": self.torch_device, "dtype": self.torch_dtype},
            "gpu": {"before": self.gpu_before, "after": self.gpu_after},
            "machine": asdict(self.machine),
            "versions": self.versions,
            "performance": {
                "mode": self.performance,
                "in_flight": self.results[self.side].in_flight,
                "over_latency": self.over_latency.to_dict() if self.over_latency else None,
            },
            "notes": list(self.notes),
        }


@shows(progress=lambda shown: shown.step)
def bench(  # noqa: PLR0913
    bundle: Bundle | str | Path,
    *,
    engine: str | None = None,
    batch_size: int | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    cpus: Sequence[int] | None = None,
    timing: TimingOptions | None = None,
    checkpoint: str | Path | None = None,
    teacher: Bundle | str | Path | None = None,
    performance: str = "latency",
    streams: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchResult:
    """Time a bundle's engine against PyTorch eager, turn about, each in a process of its own.

    It takes what the command has options for: more than seven parameters, of which two are usual.

    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        bundle: its folder, or an open one.
        engine: "onnxruntime" runs the graph of a TensorRT bundle on this CPU instead of its engine.
        batch_size: images a run, within what the engine takes; what it is tuned for by default.
        rounds: turns of each side; ten by default.
        seconds: length of a turn; one by default.
        threads: CPU threads of both sides; those that the engine was built for by default.
        device: "cpu", "cuda" or "cuda:N"; what the engine is for by default.
        cpus: to pin every side to.
        timing: in place of these five, for who has one, or another `warmup_seconds`.
        checkpoint: where the reference's weights are now.
        teacher: a bundle for the same engine to be timed too, for the realised speed-up over it.
        performance: "throughput" times the engine, and the teacher's, with several batches at a time, beside one at a time.
        streams: how many, for throughput; the runtime's choice by default.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        InputError: a number out of range, a timing beside its parts, a batch that an engine does not take, a teacher of another engine, reference weights that are not there,
            or throughput of an engine that has no such mode.
        engines.NoGpuError: an engine that needs a GPU, without one.
        engines.EngineError: arguments out of range, or a worker that failed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    if teacher is not None and not isinstance(teacher, Bundle):
        teacher = load_bundle(teacher)
    batch = bundle.batch_size if batch_size is None else batch_size
    timing = _timing(timing, rounds=rounds, seconds=seconds, threads=threads, device=device, cpus=cpus)
    require_type(batch, int, "bench, as batch size,")
    require_batch(bundle, batch)
    require_cpus(timing.cpus)
    mode = read_performance(performance, streams, timing.device)
    kind = engine or bundle.manifest.engine.kind
    run_on = Threads.of(bundle, timing.threads)
    if engines.get(kind).on_cpu:
        timing = replace(timing, threads=run_on.count)
    if mode is Performance.THROUGHPUT:
        require_several_at_once(bundle, kind)
    if teacher is not None:
        model = teacher.manifest.model
        require_same_task(bundle, teacher.path, model.image_size, model.num_classes)
        require_batch(teacher, batch)
        theirs, ours = (b.manifest.engine.kind for b in (teacher, bundle))
        if theirs != ours or engine not in (None, ours):
            raise InputError(
                f"the teacher {teacher.path} has a {theirs} engine, to be timed against {engine or ours}; "
                "give two bundles of the same engine, and no --engine"
            )
    kind = bundle.manifest.engine.kind
    checkpoint = local_file(checkpoint).absolute() if checkpoint else None
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        path, origin = bundle.engine_path, bundle.origin
        if engine not in (None, kind):
            if engine != "onnxruntime":
                raise InputError(
                    f"{bundle.path} holds a {kind} engine; --engine can be {' or '.join(dict.fromkeys((kind, 'onnxruntime')))}"
                )
            kind, path, origin = engine, Path(folder) / "engine.onnx", None
            options = engines.BuildOptions(threads=timing.threads, device=timing.device or "cpu")
            engines.get(kind).build(bundle.model_path, path, options)
        # says at once, and not from inside a worker, that the weights are gone or the engine cannot run here
        reference_weights(bundle, checkpoint)
        engines.get(kind).load(path, threads=timing.threads, device=timing.device, origin=origin).close()
        many = mode is Performance.THROUGHPUT
        side = f"{kind}, throughput" if many else kind
        if many:
            engines.get(kind).load_for_throughput(
                path, threads=timing.threads, streams=streams, origin=origin
            ).close()
        workers = {
            "PyTorch": WorkerSpec(
                TorchCall,
                (
                    bundle.path.absolute(),
                    checkpoint,
                    batch,
                    timing.threads,
                    *torch_device(kind, timing.device, bundle.manifest.precision),
                ),
                batch,
                timing.cpus,
            ),
            kind: engine_worker(kind, path, batch, timing, origin),
        }
        if many:
            workers[side] = throughput_worker(kind, path, batch, timing, streams, origin)
        if teacher is not None:
            theirs = (kind, teacher.engine_path, batch, timing)
            workers["teacher"] = (
                throughput_worker(*theirs, streams, teacher.origin)
                if many
                else engine_worker(*theirs, teacher.origin)
            )
        device, dtype = workers["PyTorch"].args[4:]
        gpu_before = telemetry_of(device)
        results = alternate(workers, timing, progress)
        gpu_after = telemetry_of(device)
    tails = (tail_doubt(name, result.stats) for name, result in results.items())
    return BenchResult(
        bundle=bundle.path,
        model=bundle.manifest.model.name,
        precision=bundle.manifest.precision,
        engine=kind,
        batch_size=batch,
        threads=timing.threads,
        cpus=timing.cpus,
        results=results,
        speedup=speedup(results["PyTorch"], results[side], ("PyTorch", side)),
        gpu_speedup=_gpu_speedup(results["PyTorch"], results[side]),
        over_teacher=_over_teacher(bundle, teacher, results["teacher"], results[side]) if teacher else None,
        around=time_around(bundle),
        torch_device=device,
        torch_dtype=dtype,
        gpu_before=gpu_before,
        gpu_after=gpu_after,
        machine=machine(),
        versions=versions(),
        side=side,
        performance=mode.value,
        over_latency=speedup(results[kind], results[side], (kind, side)) if many else None,
        notes=tuple(filter(None, (run_on.note, batch_note(bundle, batch), *tails))),
    )


def _timing(given: TimingOptions | None, **parts: Any) -> TimingOptions:
    """Return the turns, and what both sides run on, of which a timing or its parts are given.

    Raises:
        InputError: both of them, or a number out of range.
    """
    said = {name: value for name, value in parts.items() if value is not None}
    if given is not None:
        require_type(given, TimingOptions, "bench")
        if said:
            raise InputError(
                f"bench has {next(iter(said))} and a timing, which says it too; leave one of them out"
            )
        return given
    if isinstance(said.get("cpus"), Sequence):
        said["cpus"] = tuple(said["cpus"])
    timing = TimingOptions(**{"rounds": ROUNDS, **said})
    limits.check_ranges(
        timing, rounds=(1, limits.ROUNDS), seconds=(1e-9, limits.SECONDS), threads=(1, limits.THREADS)
    )
    return timing


# height and width of the JPEG that the steps around the engine are timed on: ImageNet's mean
AROUND_SIZE = (375, 500)


def time_around(bundle: Bundle, runs: int = 20) -> Around:
    """Time what comes before and after the engine for one image, on one thread."""
    import numpy as np

    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.inference import top_classes
    from sit_deploy.preprocessing import load_image

    preprocessing, classes = bundle.preprocessing(), bundle.classes
    logits = np.random.default_rng(0).standard_normal((1, len(classes))).astype(np.float32)
    seconds: dict[str, list[float]] = {"decode_ms": [], "prepare_ms": []}
    seconds |= {"classes_ms": []} if classes else {}
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        path = Path(folder) / "image.jpg"
        synthetic_images(1, size=AROUND_SIZE)[0].save(path, quality=90)
        for _ in range(runs):
            times = [time.perf_counter()]
            image = load_image(path)
            times.append(time.perf_counter())
            preprocessing(image)
            times.append(time.perf_counter())
            if classes:
                top_classes(logits, classes)
                times.append(time.perf_counter())
            for name, start, end in zip(seconds, times, times[1:], strict=False):
                seconds[name].append(end - start)
    height, width = AROUND_SIZE
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    return Around(**{"classes_ms": None} | medians, image=f"JPEG {width}×{height}")


def require_cpus(cpus: tuple[int, ...] | None) -> None:
    """Refuse CPUs that this process may not run on.

    Raises:
        InputError: names them, and those that it may.
    """
    if cpus is None:
        return
    usable = usable_cpus()
    if usable is None:
        raise InputError("this system cannot pin a process to CPUs; leave --cpus out")
    if missing := sorted(set(cpus) - set(usable)):
        raise InputError(
            f"CPU {missing[0]} cannot be used here; pass --cpus of {', '.join(map(str, usable))}"
        )


def require_batch(bundle: Bundle, batch: int) -> None:
    """Refuse a batch size that a bundle's engine does not take.

    Raises:
        InputError: it does not.
    """
    low, high = bundle.batch_range
    if not low <= batch <= high:
        takes = str(low) if low == high else f"{low} to {high}"
        raise InputError(
            f"the engine of {bundle.path} takes batches of {takes}, not {batch}; pass such a --batch-size, or build it with --dynamic-batch MIN:OPT:MAX"
        )


def _over_teacher(bundle: Bundle, teacher: Bundle, theirs: WorkerResult, ours: WorkerResult) -> OverTeacher:
    student, unslimmed = (b.manifest.model for b in (bundle, teacher))
    work = unslimmed.macs / student.macs
    found = speedup(theirs, ours, ("the teacher", "the engine"), work)
    return OverTeacher(teacher.path, unslimmed.name, found, _gpu_speedup(theirs, ours), work)


def _gpu_speedup(reference: WorkerResult, engine: WorkerResult) -> float | None:
    """Return the median of the rounds' ratios by the GPU's clock, None where one side has none."""
    return of_rounds(reference.gpu_round_medians_ms, engine.gpu_round_medians_ms)
