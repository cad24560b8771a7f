"""FRD from fitted TSMs against FRD from new ones: the same student, teacher, images, recipe and seeds, of few epochs and of many.

    python benchmarks/warm_start.py WORK                    # 8 epochs from new TSMs, 3 from fitted ones, three seeds each
    python benchmarks/warm_start.py WORK --jobs 2

WORK is a folder of benchmarks/frd_ablation.py with its teacher of cluttered digits. Of its training images the first `--per-class`
of each class are taken, so that it takes an hour and not a day. Every run is a `sit-deploy train`; one that was interrupted goes on.
Results go to benchmarks/results/warm_start.json.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from frd_ablation import PICTURES, train  # noqa: E402
from slim_minutes import STUDENTS  # noqa: E402

from engines.timing import machine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "warm_start.json"
LR = 0.016  # at a batch of 512: what the ablation found


def few_images(data: Path, place: Path, per_class: int) -> Path:
    """Link the first images of each class, and all that are held out, into a data set of their own."""
    for part, most in (("train", per_class), ("val", None)):
        for folder in sorted((data / part).iterdir()):
            target = place / part / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:most]:
                if not (target / image.name).exists():
                    (target / image.name).symlink_to(image.resolve())
    return place


def gpu_name() -> str:
    """Return what PyTorch calls the first GPU."""
    import torch

    return torch.cuda.get_device_name()


def curve(run: Path) -> list[float]:
    """Return the top-1 before the first epoch and after each, in percent."""
    rows = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [round(row["top1"], 2) for row in rows if row["kind"] == "epoch"]


@click.command()
@click.argument("work", type=click.Path(path_type=Path, exists=True))
@click.option("--per-class", default=150, show_default=True)
@click.option("--cold-epochs", default=8, show_default=True)
@click.option("--warm-epochs", default=3, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at a time, a thread each.")
@click.option("--device", default="cpu", show_default=True, help="What to train on, as `train` takes it.")
@click.option("--workers", default=0, show_default=True, help="Processes that decode images, of each run.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="The results.")
def main(
    work: Path,
    per_class: int,
    cold_epochs: int,
    warm_epochs: int,
    seeds: int,
    jobs: int,
    device: str,
    workers: int,
    output: Path,
) -> None:
    """Run what has not been run, and write the results."""
    teacher = json.loads((work / "teacher" / "model.json").read_text(encoding="utf-8"))
    student = STUDENTS[teacher["model"]["name"]]
    (cluttered,) = work.glob("data-*")
    data = few_images(cluttered, work / f"few-{per_class}", per_class)

    def run(arm: str, epochs: int, seed: int) -> dict[str, Any]:
        folder = work / f"starts-{per_class}" / f"{arm}-{epochs}-{seed}"
        weights = work / "teacher" / "model.safetensors"
        schedule = {"epochs": epochs, "lr": LR, "min_lr": 1.6e-4, "seed": seed}
        switch = "--warm-start" if arm == "warm" else "--no-warm-start"
        where = {"device": device, "workers": workers}
        summary = train(
            folder, 1, switch, model=student, data=data, teacher=weights, **PICTURES, **schedule, **where
        )
        return {
            "arm": arm,
            "epochs": epochs,
            "seed": seed,
            "top1": curve(folder),
            "best": round(summary["student"]["top1"], 2),
        }

    wanted = [
        (arm, n, seed) for seed in range(seeds) for arm, n in (("warm", warm_epochs), ("cold", cold_epochs))
    ]
    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(lambda job: run(*job), wanted))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "student": student,
        "train_images": per_class * len(list((data / "train").iterdir())),
        "teacher_top1": teacher["metrics"]["top1"],
        "lr": LR,
        "device": gpu_name() if device == "cuda" else "cpu",
        "runs": runs,
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": dataclasses.asdict(machine()),
    }
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for entry in runs:
        print(entry)


if __name__ == "__main__":
    main()
