"""`sit-deploy bench`: a bundle's engine and the PyTorch reference timed turn about, each in a process of its own.

On a GPU both sides run there, with PyTorch in the type of the bundle, and two times are told apart: from images in host memory
to logits in host memory, and the GPU's own clock with the transfers left out.
"""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
from engines.gpus import telemetry
from engines.speedup import of_rounds, speedup
from engines.timing import TimingOptions, WorkerResult, WorkerSpec, alternate, engine_worker, machine
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.doctor import versions
from sit_deploy.errors import InputError
from sit_deploy.validation.reference import reference_model, reference_weights

# What PyTorch runs in on a GPU beside an engine of each precision: its own fastest type of no more rounding, or FP16
# where the engine has 8 bits, which eager PyTorch has not.
_TORCH_TYPE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float16", "fp8": "float16"}

ROUNDS = 10  # turns of each side, where nothing else is asked for


class TorchCall:
    """A worker's callable that runs the bundle's PyTorch model on one random batch, from host memory to host memory.

    Args (all picklable): device: "cpu" or "cuda:N". dtype: of weights and activations; images and logits stay float32 on
    the host, as with the engine.
    """

    def __init__(
        self,
        bundle: Path,
        checkpoint: Path | None,
        batch_size: int,
        threads: int | None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        opened = load_bundle(bundle)
        self._model = self.make_model(opened, checkpoint).to(self._device, self._dtype)
        size = opened.manifest.model.image_size
        images = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(0))
        self.last_gpu_seconds: float | None = None
        self._events: tuple[Any, Any] | None = None
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False  # as the engine: float32 means float32
            torch.backends.cudnn.allow_tf32 = False
            images = images.pin_memory()
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        self._images = images

    @staticmethod
    def make_model(bundle: Bundle, checkpoint: Path | None) -> Any:
        """Return the model to time, in eval mode."""
        return reference_model(bundle, checkpoint)

    def __call__(self) -> None:
        import torch

        with torch.inference_mode():
            images = self._images.to(self._device, non_blocking=True)
            if self._events is None:
                self._model(images.to(self._dtype))
                return
            started, ended = self._events
            started.record()
            logits = self._model(images.to(self._dtype)).float()
            ended.record()
            logits.cpu()  # waits
            ended.synchronize()
            self.last_gpu_seconds = started.elapsed_time(ended) / 1e3


def bench(
    bundle: Bundle,
    *,
    engine: str | None = None,
    batch_size: int | None = None,
    timing: TimingOptions | None = None,
    checkpoint: Path | None = None,
    teacher: Bundle | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Time the engine against PyTorch eager; return statistics of both, their ratio by round, and the machine.

    Args:
        engine: "onnxruntime" runs the graph of a TensorRT bundle on this CPU instead of its engine.
        batch_size: images a run, within what the engine takes; what it is tuned for by default.
        timing: the turns, and what both sides run on; by default ten rounds, where the engine is for.
        teacher: a bundle for the same engine to be timed too, for the realised speed-up over it.
    Raises:
        InputError: a batch that an engine does not take, a teacher of another engine, or reference weights that are not
            there.
        engines.NoGpuError: an engine that needs a GPU, without one.
        engines.EngineError: arguments out of range, or a worker that failed.
    """
    batch = bundle.batch_size if batch_size is None else batch_size
    _require_batch(bundle, batch)
    timing = timing or TimingOptions(rounds=ROUNDS)
    require_cpus(timing.cpus)
    if teacher is not None:
        _require_same_task(bundle, teacher)
        _require_batch(teacher, batch)
        theirs, ours = (b.manifest.engine.kind for b in (teacher, bundle))
        if theirs != ours or engine not in (None, ours):
            raise InputError(
                f"the teacher {teacher.path} has a {theirs} engine, to be timed against {engine or ours}; "
                "give two bundles of the same engine, and no --engine"
            )
    kind = bundle.manifest.engine.kind
    checkpoint = checkpoint and checkpoint.absolute()
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        path, origin = bundle.engine_path, bundle.origin
        if engine not in (None, kind):
            if engine != "onnxruntime":
                raise InputError(
                    f"{bundle.path} holds a {kind} engine; --engine can be {kind} or onnxruntime"
                )
            kind, path, origin = engine, Path(folder) / "engine.onnx", None
            options = engines.BuildOptions(threads=timing.threads, device=timing.device or "cpu")
            engines.get(kind).build(bundle.model_path, path, options)
        # says at once, and not from inside a worker, that the weights are gone or the engine cannot run here
        reference_weights(bundle, checkpoint)
        engines.get(kind).load(path, threads=timing.threads, device=timing.device, origin=origin).close()
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
        if teacher is not None:
            workers["teacher"] = engine_worker(kind, teacher.engine_path, batch, timing, teacher.origin)
        gpu_before = telemetry()
        results = alternate(workers, timing, progress)
        gpu_after = telemetry()
    found = speedup(results["PyTorch"], results[kind], ("PyTorch", kind))
    return {
        "bundle": str(bundle.path),
        "model": bundle.manifest.model.name,
        "precision": bundle.manifest.precision,
        "batch_size": batch,
        "threads": timing.threads,
        "cpus": list(timing.cpus) if timing.cpus else None,
        "results": {name: asdict(result) for name, result in results.items()},
        "speedup": {"engine": kind, "over": "PyTorch", **found.to_dict()},
        "gpu_speedup": _gpu_speedup(results["PyTorch"], results[kind]),
        "over_teacher": _over_teacher(bundle, teacher, results["teacher"], results[kind])
        if teacher
        else None,
        "around": time_around(bundle),
        "pytorch": dict(zip(("device", "dtype"), workers["PyTorch"].args[4:], strict=True)),
        "gpu": {"before": gpu_before, "after": gpu_after},
        "machine": asdict(machine()),
        "versions": versions(),
    }


AROUND_SIZE = (
    375,
    500,
)  # height and width of the JPEG that the steps around the engine are timed on: ImageNet's mean


def time_around(bundle: Bundle, runs: int = 20) -> dict[str, Any]:
    """Time what comes before and after the engine for one image, on one thread.

    Returns:
        Medians in milliseconds: `decode_ms` of a JPEG file, `prepare_ms` of the preprocessing, `classes_ms` from logits to
        the five best classes; and `image`, its size.
    """
    import numpy as np

    from sit_deploy.data.synthetic import sample_images
    from sit_deploy.inference import top_classes
    from sit_deploy.preprocessing import load_image

    preprocessing, classes = bundle.preprocessing(), bundle.classes
    logits = np.random.default_rng(0).standard_normal((1, len(classes))).astype(np.float32)
    seconds: dict[str, list[float]] = {"decode_ms": [], "prepare_ms": [], "classes_ms": []}
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        path = Path(folder) / "image.jpg"
        sample_images(1, size=AROUND_SIZE)[0].save(path, quality=90)
        for _ in range(runs):
            times = [time.perf_counter()]
            image = load_image(path)
            times.append(time.perf_counter())
            preprocessing(image)
            times.append(time.perf_counter())
            top_classes(logits, classes)
            times.append(time.perf_counter())
            for name, start, end in zip(seconds, times, times[1:], strict=False):
                seconds[name].append(end - start)
    height, width = AROUND_SIZE
    return {
        **{name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "image": f"JPEG {width}×{height}",
    }


def require_cpus(cpus: tuple[int, ...] | None) -> None:
    """Refuse CPUs that this process may not run on.

    Raises:
        InputError: names them, and those that it may.
    """
    if cpus is None:
        return
    if not hasattr(os, "sched_getaffinity"):
        raise InputError("this system cannot pin a process to CPUs; leave --cpus out")
    usable = sorted(os.sched_getaffinity(0))
    if missing := sorted(set(cpus) - set(usable)):
        raise InputError(
            f"CPU {missing[0]} cannot be used here; pass --cpus of {', '.join(map(str, usable))}"
        )


CSV_COLUMNS = (
    *("model", "precision", "engine", "batch_size", "side", "clock", "p50_ms", "p90_ms", "p99_ms", "mean_ms"),
    *(
        "images_per_second",
        "calls",
        "speedup_over_pytorch",
        "speedup_low",
        "speedup_high",
        "speedup_doubt",
        "threads",
        "cpus",
        "date",
        "cpu_model",
    ),
)


def csv_rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of `CSV_COLUMNS` for each side, batch size and clock of what `bench` returned."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    rows = []
    for result in results:
        kind = result["speedup"]["engine"]
        for side, found in result["results"].items():
            for clock, stats in (("wall", found["stats"]), ("gpu", found["gpu"])):
                if stats is None:
                    continue
                row = {name: stats[name] for name in CSV_COLUMNS if name in stats}
                over = result["speedup"] if side == kind else None
                rows.append(
                    {
                        **row,
                        **{name: result[name] for name in ("model", "precision", "batch_size", "threads")},
                        **{"engine": kind, "side": side, "clock": clock, "calls": stats["iterations"]},
                        # a figure that the rounds do not bear out is left out: whoever reads a table takes it for one
                        "speedup_over_pytorch": over and (None if over["doubt"] else over["median"]),
                        "speedup_low": over and over["low"],
                        "speedup_high": over and over["high"],
                        "speedup_doubt": over and over["doubt"],
                        "cpus": " ".join(map(str, result["cpus"] or ())),
                        **{"date": date, "cpu_model": result["machine"]["cpu_model"]},
                    }
                )
    return rows


def plot_csv(path: Path, picture: Path) -> None:
    """Draw a CSV of `csv_rows`: images a second and median latency over the batch size, one line a side, as PNG."""
    import csv

    from matplotlib.figure import Figure

    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clock"] == "wall"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = [row for row in rows if row["side"] == side]
        batches = [int(row["batch_size"]) for row in mine]
        speed.plot(batches, [float(row["images_per_second"]) for row in mine], "o-", label=side)
        low, high = ([float(row[key]) for row in mine] for key in ("p50_ms", "p99_ms"))
        (line,) = latency.plot(batches, low, "o-", label=side)
        latency.fill_between(batches, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    speed.set_ylabel("images a second")
    latency.set_ylabel("milliseconds a batch, p50 to p99")
    for axes in (speed, latency):
        axes.set_xlabel("batch size")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    title = f"{first['model']} {first['precision']} on {first['cpu_model']}, {first['date']}"
    if doubts := [row for row in rows if row["speedup_doubt"]]:
        batches = ", ".join(row["batch_size"] for row in doubts)
        title += f"\nspeed-up not measurable then at batch {batches}: {doubts[0]['speedup_doubt']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture, dpi=150, format="png")


def _require_batch(bundle: Bundle, batch: int) -> None:
    low, high = bundle.batch_range
    if not low <= batch <= high:
        takes = str(low) if low == high else f"{low} to {high}"
        raise InputError(
            f"the engine of {bundle.path} takes batches of {takes}, not {batch}; pass such a --batch-size"
        )


def _require_same_task(bundle: Bundle, teacher: Bundle) -> None:
    """Refuse a teacher of other images or classes: its speed would be compared with that of another task."""
    ours, theirs = ((b.manifest.model.image_size, b.manifest.model.num_classes) for b in (bundle, teacher))
    if ours != theirs:
        raise InputError(
            f"the teacher {teacher.path} takes {theirs[0][0]} pixels and has {theirs[1]} classes, {bundle.path} "
            f"{ours[0][0]} and {ours[1]}; give a bundle of the teacher that it was distilled from"
        )


def _over_teacher(
    bundle: Bundle, teacher: Bundle, theirs: WorkerResult, ours: WorkerResult
) -> dict[str, Any]:
    """Return how much faster the engine is than the teacher's, beside how much less it computes."""
    measured = speedup(theirs, ours, ("the teacher", "the engine"))
    student, unslimmed = (b.manifest.model for b in (bundle, teacher))
    return {
        "bundle": str(teacher.path),
        "model": unslimmed.name,
        **measured.to_dict(),
        "gpu": _gpu_speedup(theirs, ours),
        "macs_ratio": unslimmed.macs / student.macs,
    }


def torch_device(kind: str, device: str | None, precision: str) -> tuple[str, str]:
    """Return where PyTorch runs and in what type, to be compared with an engine."""
    on_gpu = kind not in engines.ON_CPU or (device or "cpu").startswith("cuda")
    if not on_gpu:
        return "cpu", "float32"
    number = (device or "cuda").partition(":")[2] or "0"
    return f"cuda:{number}", _TORCH_TYPE[precision]


def _gpu_speedup(reference: WorkerResult, engine: WorkerResult) -> float | None:
    """Return the median of the rounds' ratios by the GPU's clock, None where one side has none."""
    return of_rounds(reference.gpu_round_medians_ms, engine.gpu_round_medians_ms)
