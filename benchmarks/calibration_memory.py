"""Memory and time of observing a model's activations over many images, beside plain inference and ONNX Runtime's calibrator.

    python benchmarks/calibration_memory.py                    # sit_s, 224×224, 2 threads
    python benchmarks/calibration_memory.py --model sit_t --rounds 3

    plain        the graph on ONNX Runtime at batch 1, a default session
    ours         calibration.collect: every tensor that enters a Conv or a MatMul with a constant weight
    onnxruntime  its entropy calibrator on Conv and MatMul, which takes their outputs and the attention's too

Each runs in processes of its own. Memory is the process's resident set, its peak as the kernel keeps it (VmHWM); the
peak of `plain` counts its imports and its session as well, so the difference is what calibration costs. Time is the
median of an image, `plain` and `ours` taking turns; a ratio is taken within a round. Weights and images are random. Results
go to benchmarks/results/calibration_memory.json.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engines.timing import machine  # noqa: E402

LIMIT_MB = 1024.0  # peak above plain inference
LIMIT_RATIO = 3.0  # time of an image over that of plain inference


def resident_mb(field: str) -> float:
    """Return VmRSS or VmHWM of this process; ru_maxrss would not do, since a child is born with its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def image_stream(count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """`count` images, no two the same, one alive at a time."""
    pool = np.random.default_rng(0).standard_normal((8, 1, 3, *size)).astype(np.float32)
    for index in range(count):
        yield pool[index % 8] * np.float32(1 + index / 4096)


def export(name: str, path: Path) -> tuple[int, int]:
    """Write the deploy form at batch 1 and return the image size."""
    import onnx

    from benchmarks.random_weights import random_model
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx

    model = random_model(name)
    onnx.save(export_onnx(to_deploy_form(model), model.img_size), path)
    return model.img_size


def report(milliseconds: list[float], curve: dict[int, float]) -> dict[str, Any]:
    return {
        "images": len(milliseconds),
        # the first images set up memory pools and caches
        "ms_per_image": statistics.median(milliseconds[len(milliseconds) // 8 :]),
        "peak_mb": resident_mb("VmHWM"),
        "resident_mb_after_images": curve,
    }


def is_marked(done: int) -> bool:
    """Whether the memory curve has a point here: at powers of two."""
    return done & (done - 1) == 0


def run_plain(path: Path, size: tuple[int, int], count: int, threads: int) -> dict[str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    milliseconds, curve = [], {}
    for done, image in enumerate(image_stream(count, size), 1):
        started = time.perf_counter()
        session.run(None, {"images": image})
        milliseconds.append((time.perf_counter() - started) * 1e3)
        if is_marked(done):
            curve[done] = resident_mb("VmRSS")
    return report(milliseconds, curve)


def run_ours(path: Path, size: tuple[int, int], count: int, threads: int) -> dict[str, Any]:
    import onnx

    from calibration.collect import collect_observations
    from calibration.thresholds import thresholds_by_method
    from sit_deploy.quantize.calibrate import SMOOTHING_IMAGES

    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    tensors = dict.fromkeys(
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Conv" or (node.op_type == "MatMul" and node.input[1] in weights)
    )
    normalised = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    ends: list[float] = []
    curve: dict[int, float] = {}

    def progress(text: str, done: int, total: int) -> None:
        ends.append(time.perf_counter())
        if is_marked(done):
            curve[done] = resident_mb("VmRSS")

    passes = []
    # as a build does: the channels that scales migrate between on some images, then all tensors on all
    for images, wanted, channels in (
        (min(count, SMOOTHING_IMAGES), [], dict.fromkeys(normalised, -1)),
        (count, tensors, {}),
    ):
        ends[:] = [time.perf_counter()]
        seen = collect_observations(
            model, image_stream(images, size), wanted, channels, progress, threads=threads
        )
        # the first difference holds the making of the session too; `report` leaves it out
        passes.append(report((np.diff(ends) * 1e3).tolist(), curve))
    total = sum(p["ms_per_image"] * p["images"] for p in passes)
    result = passes[1] | {"ms_per_image": total / count}
    started = time.perf_counter()
    for observer in seen.tensors.values():
        thresholds_by_method(observer)
    return result | {
        "ms_of_passes": [p["ms_per_image"] for p in passes],
        "tensors": len(tensors),
        "values_per_image": sum(observer.histogram.total for observer in seen.tensors.values()) // count,
        "thresholds_of_all_methods_s": time.perf_counter() - started,
        "peak_mb": resident_mb("VmHWM"),
    }


def run_onnxruntime(path: Path, size: tuple[int, int], count: int, threads: int) -> dict[str, Any]:
    """`threads` is not passed on: the calibrator takes ONNX Runtime's own choice, one a core."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    curve: dict[int, float] = {}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = enumerate(image_stream(count, size))

        def get_next(self) -> dict[str, np.ndarray] | None:
            done, image = next(self.images, (count, None))
            curve[done] = resident_mb("VmRSS")
            return None if image is None else {"images": image}

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            path,
            ["Conv", "MatMul"],
            str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Entropy,
        )
        started = time.perf_counter()
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data()
        seconds = time.perf_counter() - started
    return {
        "images": count,
        "ms_per_image": seconds / count * 1e3,
        "peak_mb": resident_mb("VmHWM"),
        "resident_mb_after_images": curve,
        "mb_per_image": (max(curve.values()) - curve[0]) / count,
        "tensors": len(ranges.data),
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@click.command()
@click.option("--model", default="sit_s", show_default=True)
@click.option(
    "--few", type=click.IntRange(8), default=64, show_default=True, help="Images of the timed rounds."
)
@click.option(
    "--many", type=click.IntRange(8), default=512, show_default=True, help="Images of the long run."
)
@click.option("--peer-images", type=click.IntRange(1), default=16, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(model: str, few: int, many: int, peer_images: int, rounds: int, threads: int) -> None:
    """Measure what observing costs over plain inference; exit 1 if it costs more than it may."""
    from sit_deploy.quantize.calibrate import SMOOTHING_IMAGES

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        size = alone(export, model, path)
        turns = [
            (alone(run_plain, path, size, few, threads), alone(run_ours, path, size, few, threads))
            for _ in range(rounds)
        ]
        long = alone(run_ours, path, size, many, threads)
        peer = alone(run_onnxruntime, path, size, peer_images, threads)
    # of MANY images, from the passes of each round: the first pass sees no more than SMOOTHING_IMAGES of them
    share = min(SMOOTHING_IMAGES, many) / many
    ratios = [
        (share * ours["ms_of_passes"][0] + ours["ms_of_passes"][1]) / plain["ms_per_image"]
        for plain, ours in turns
    ]
    peaks = {
        key: statistics.median(turn[index]["peak_mb"] for turn in turns)
        for index, key in enumerate(("plain", "ours"))
    }
    above = max(peaks["ours"], long["peak_mb"]) - peaks["plain"]
    packages = ("numpy", "onnx", "onnxruntime")
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "model": model,
        "image_size": size,
        "threads": threads,
        "machine": asdict(before),
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
        "peak_above_inference_mb": above,
        "peak_mb": {
            f"plain, {few} images": peaks["plain"],
            f"ours, {few} images": peaks["ours"],
            f"ours, {many} images": long["peak_mb"],
            f"onnxruntime, {peer_images} images": peer["peak_mb"],
        },
        "time_over_inference": {"median": statistics.median(ratios), "rounds": ratios},
        "runs": {
            "plain": [plain for plain, _ in turns],
            "ours": [ours for _, ours in turns],
            "ours_long": long,
            "onnxruntime": peer,
        },
    }
    target = ROOT / "benchmarks" / "results" / "calibration_memory.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    sys.path.insert(0, str(ROOT))
    from benchmarks.documents import write_between

    write_between("quantization.md", "memory", table(result))
    if above > LIMIT_MB or statistics.median(ratios) > LIMIT_RATIO:
        raise click.ClickException(
            f"observing may take {LIMIT_MB:.0f} MB above inference and {LIMIT_RATIO} times as long"
        )


def show(result: dict[str, Any]) -> None:
    runs = result["runs"]
    for key, peak in result["peak_mb"].items():
        print(f"{key:28} peak {peak:7.0f} MB")
    for key in ("plain", "ours"):
        print(f"{key:28} {statistics.median(run['ms_per_image'] for run in runs[key]):7.1f} ms an image")
    print(f"{'onnxruntime':28} {runs['onnxruntime']['ms_per_image']:7.1f} ms an image")
    print(f"{'ours over plain':28} {result['time_over_inference']['median']:7.2f}×")
    curve = runs["ours_long"]["resident_mb_after_images"]
    print("ours, resident after images:", ", ".join(f"{n}: {mb:.0f} MB" for n, mb in curve.items()))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, for docs/quantization.md."""
    runs, peaks = result["runs"], list(result["peak_mb"].values())
    times = [statistics.median(run["ms_per_image"] for run in runs[key]) for key in ("plain", "ours")]
    times += [runs["ours_long"]["ms_per_image"], runs["onnxruntime"]["ms_per_image"]]
    lines = ["| | peak memory MB | ms an image |", "|---|---:|---:|"]
    for label, peak, taken in zip(result["peak_mb"], peaks, times, strict=True):
        lines.append(f"| {label} | {peak:.0f} | {taken:.1f} |")
    curve = ", ".join(
        f"{mb:.0f} after {n}" for n, mb in runs["ours_long"]["resident_mb_after_images"].items()
    )
    return (
        f"Observing {result['model']} at {result['image_size'][0]}×{result['image_size'][1]}, `python "
        f"benchmarks/calibration_memory.py`, {result['date']}, {result['machine']['cpu_model']}, {result['threads']} threads, ONNX "
        f"Runtime {result['versions']['onnxruntime']}; “plain” is inference, “onnxruntime” its entropy calibrator. The two passes "
        f"over {runs['ours_long']['images']} images take {result['time_over_inference']['median']:.2f} times inference.\n\n"
        + "\n".join(lines)
        + f"\n\nResident memory in MB over the images: {curve}."
    )


if __name__ == "__main__":
    main()
