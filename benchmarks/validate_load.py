"""What `validate --data` costs besides the two models: memory over many images, and throughput lost to loading.

    python benchmarks/validate_load.py                       # memory over 50 000 images, throughput of sit_s
    python benchmarks/validate_load.py --count 2000 --rounds 2

Images are JPEG files, generated, each of many names: 500×375 pixels for the throughput, and 160×120 for the memory, so that many
are decoded in little time. Memory is the process's resident set while sit_nano is measured on all of them. Throughput is of sit_s at batch 8, FP32, on ONNX Runtime: `bare` runs the engine on images that are in
memory; `loaded` runs `evaluate`, which decodes and prepares them too, beside a reference that costs nothing; `both` and
`both, loaded` have the PyTorch reference as well, as `validate` does. They take turns, and a ratio is the median of the rounds'.
Weights are random. Results go to benchmarks/results/validate_load.json.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from engines.timing import machine  # noqa: E402
from sit_deploy.bundle import load_bundle  # noqa: E402
from sit_deploy.data.batches import batches  # noqa: E402
from sit_deploy.data.image_folder import ImageFolder  # noqa: E402
from sit_deploy.data.synthetic import synthetic_images  # noqa: E402
from sit_deploy.inference import load  # noqa: E402
from sit_deploy.measure.evaluate import evaluate  # noqa: E402
from sit_deploy.pipeline.build import build  # noqa: E402
from sit_deploy.pipeline.request import BuildRequest  # noqa: E402
from sit_deploy.validation.reference import reference_logits, reference_model  # noqa: E402

FILES = 200  # different pictures
SIZE, SMALL = (375, 500), (120, 160)
BATCH = 8
CLASSES = 1000


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write `count` image files in class folders; a picture has many names, its file one place on the disk."""
    pool = folder.with_name(f"{folder.name}-pool")
    pool.mkdir()
    for index, image in enumerate(synthetic_images(FILES, size=size)):
        image.save(pool / f"{index}.jpg", quality=90)
    for index in range(count):
        place = folder / f"{index % CLASSES:04}"
        if index < CLASSES:
            place.mkdir(parents=True)
        os.link(pool / f"{index % FILES}.jpg", place / f"{index}.jpg")


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def measure_memory(images: Path, count: int, folder: Path) -> dict[str, Any]:
    """Return the resident set in MB after some of the images and after all."""
    bundle = build(BuildRequest("sit_nano", folder / "nano", engine="onnxruntime"))
    samples = ImageFolder(images).samples
    seen: list[tuple[int, float]] = []

    def watch(_: str, done: int, total: int) -> None:
        if done == total or done * 50 // total > (done - BATCH) * 50 // total:
            seen.append((done, resident_mb()))

    started = time.perf_counter()
    with load(bundle) as classifier:
        logits = reference_logits(reference_model(bundle))
        evaluate(logits, {"engine": classifier.logits}, samples, bundle.preprocessing(), BATCH, watch)
    settled = [mb for done, mb in seen if done >= count // 10]
    return {
        "images": count,
        "seconds": round(time.perf_counter() - started, 1),
        "resident_mb": [[done, round(mb, 1)] for done, mb in seen],
        "grown_mb": round(seen[-1][1] - settled[0], 1),
    }


def measure_throughput(images: Path, rounds: int, folder: Path) -> dict[str, Any]:
    bundle = build(BuildRequest("sit_s", folder / "s", engine="onnxruntime", batch_size=BATCH))
    bundle = load_bundle(bundle.path)
    prepare = bundle.preprocessing()
    samples = ImageFolder(images).samples[: 8 * BATCH]
    ready = [array for array, _ in batches(samples, prepare, BATCH)]
    torch_reference = reference_logits(reference_model(bundle))
    free = np.zeros((BATCH, CLASSES), np.float32)
    with load(bundle) as classifier:
        engine = classifier.logits

        def run_bare(also: Callable[[np.ndarray], Any] | None = None) -> None:
            for array in ready:
                if also:
                    also(array)
                engine(array)

        turns: dict[str, Callable[[], object]] = {
            "bare": run_bare,
            "loaded": lambda: evaluate(lambda _: free, {"engine": engine}, samples, prepare, BATCH),
            "both": lambda: run_bare(torch_reference),
            "both, loaded": lambda: evaluate(torch_reference, {"engine": engine}, samples, prepare, BATCH),
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(rounds + 1):
            for name, call in turns.items():
                started = time.perf_counter()
                call()
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)

    def kept(loaded: str, bare: str) -> float | None:
        found = gains.of_times(seconds[bare], seconds[loaded]).median
        return None if found is None else round(found, 3)

    return {
        "images_per_second": {
            name: round(len(samples) / statistics.median(s), 2) for name, s in seconds.items()
        },
        "kept_of_the_engine": kept("loaded", "bare"),
        "kept_of_both": kept("both, loaded", "both"),
        "rounds": rounds,
    }


def _share(kept: float | None) -> str:
    return f"a share {gains.NONE} here" if kept is None else f"{kept:.1%}"


def paragraph(report: dict[str, Any]) -> str:
    """Return what docs/validation.md says of the results."""
    found, memory, host = report["throughput"], report["memory"], report["machine"]
    rates = found["images_per_second"]
    return (
        f"sit_s, FP32, batch {BATCH}, JPEG files of {SIZE[1]}×{SIZE[0]}, on {host['usable_cpus']} CPUs ({host['cpu_model']}, "
        f"{report['date']}): decoding and preparing leave {_share(found['kept_of_the_engine'])} of the engine's bare throughput "
        f"({rates['loaded']:.1f} of {rates['bare']:.1f} images/s), and {_share(found['kept_of_both'])} where PyTorch runs beside it. "
        f"Over {memory['images']} images memory grew by {memory['grown_mb']:.1f} MB after the first tenth of them."
    )


@click.command()
@click.option("--count", type=click.IntRange(min=CLASSES), default=50_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--write-docs", is_flag=True, help="Put the figures into docs/validation.md.")
def main(count: int, rounds: int, as_json: bool, write_docs: bool) -> None:
    """Measure memory and throughput of a validation."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "many", count, SMALL)
        write_images(folder / "val", CLASSES, SIZE)
        report = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": asdict(machine()),
            "versions": {p: version(p) for p in ("torch", "onnxruntime", "pillow", "numpy")},
            "throughput": measure_throughput(folder / "val", rounds, folder),
            "memory": measure_memory(folder / "many", count, folder),
        }
    path = ROOT / "benchmarks" / "results" / "validate_load.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    if write_docs:
        write_between("validation.md", "validate-load", paragraph(report))
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    found, memory = report["throughput"], report["memory"]
    for name, rate in found["images_per_second"].items():
        click.echo(f"{name:14} {rate:8.2f} images/s")
    click.echo(
        f"kept with loading: {found['kept_of_the_engine']:.3f} of the engine, {found['kept_of_both']:.3f} of both"
    )
    click.echo(
        f"memory: {memory['resident_mb'][-1][1]:.0f} MB after {count} images, {memory['grown_mb']:+.1f} MB since a tenth "
        f"of them ({memory['seconds']:.0f} s)"
    )


if __name__ == "__main__":
    main()
