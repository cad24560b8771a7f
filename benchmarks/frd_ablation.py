"""What FRD gives over the classification loss alone: the same student, start, images, schedule, budget and seeds.

    python benchmarks/frd_ablation.py WORK                    # renders, trains the teacher, then both arms over the seeds
    python benchmarks/frd_ablation.py WORK --jobs 2 --seeds 3

The task is cluttered digits (benchmarks/cluttered_digits.py). The teacher starts from one trained on plain digits. Both arms
start the student from the teacher's weights, its TSMs new; `ce` minimises cross-entropy, `frd` cross-entropy + 2 · tokens +
2 · logits. Both have the learning rate of the grid that is best for `ce`, found with a seed that is not reported.
Every run is a `sit-deploy train`; one that was interrupted goes on. Results go to benchmarks/results/frd_ablation.json, the
table to docs/frd.md, the curves to docs/frd_*.png.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engines.timing import machine  # noqa: E402

TUNING_SEED = 1000
ARMS = ("ce", "frd")
# pictures of digits: a mirrored or strongly cropped one is another digit or none
PICTURES = {
    "mixup": 0, "cutmix": 0, "auto-augment": "", "color-jitter": 0.2, "erasing": 0, "repeats": 1, "flip": 0, "min-scale": 0.7,
    "min-ratio": 0.85, "rotation": 10, "crop-pct": 1.0, "batch-size": 32, "drop-path": 0, "cooldown-epochs": 0, "clip-grad": 1,
}  # fmt: skip


def train(output: Path, threads: int, start: str = "--no-warm-start", **options: Any) -> dict[str, Any]:
    """Run `sit-deploy train` in a process of its own, unless it has finished before; return its summary. A student starts from new TSMs."""
    if not (output / "summary.json").exists():
        options = {"device": "cpu", "workers": 0, **options}
        words = [str(w) for k, v in options.items() for w in (f"--{k.replace('_', '-')}", v)]
        switches = [start, "--lr-per-step", "--resume", "-o", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "training", *words, *switches],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{output}: {done.stderr.strip().splitlines()[-1]}")
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    print(f"{output.name}: top-1 {summary['student']['top1']:.2f} %", flush=True)
    return summary


def against_teacher(weights: Path, teacher: Path, data: Path) -> dict[str, float]:
    """Return a student's accuracy, agreement and KL divergence against its teacher on the held-out images."""
    import torch

    from sit_deploy.data.datasets import open_data
    from sit_deploy.models.card_file import read_card
    from sit_deploy.models.load import load_model
    from sit_deploy.processes import World
    from training.loaders import HeldOut
    from training.metrics import evaluate

    models = []
    for path in (weights, teacher):
        card = read_card(path)
        models.append(load_model(card.name, path, card.image_size, stages=card.stages).model)
    held_out = HeldOut(open_data(str(data)).val, read_card(weights).preprocessing, 0)
    batches = torch.utils.data.DataLoader(held_out, batch_size=64)
    return evaluate(models[0], batches, World(0, 1, torch.device("cpu")), models[1]).to_dict()


def start_accuracy(run: Path) -> float:
    """Return the top-1 of a run before its first step."""
    first = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return json.loads(first)["top1"]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def longer_runs(result: dict[str, Any]) -> str:
    """Return the paragraph on the longer runs, if there were any."""
    longer = result["longer"]
    if not longer:
        return ""
    teacher = result["teacher"]["top1"]
    ce, frd = (
        f"{run['top1']:.2f} % ({100 * run['top1'] / teacher:.1f} % of the teacher's; agreement {run['agreement']:.2f} %, "
        f"KL {run['kl']:.3f})"
        for run in (longer["ce"], longer["frd"])
    )
    return f"""
For {longer["epochs"]} epochs, with seed 0 alone, the classification loss reaches {ce} and FRD {frd}.

An epoch of FRD takes about 2.5 times as long as one of the classification loss here, on a CPU, for the teacher's forward pass
and the reverse TSMs: {longer["epochs"]} epochs of the classification loss take about the time of {result["epochs"]} of FRD, and
reach more than these.
"""


def table(result: dict[str, Any]) -> str:
    """Return docs/frd.md."""
    arms, teacher, student = result["arms"], result["teacher"], result["student"]
    rows = []
    for name, title in (("ce", "classification loss only"), ("frd", "FRD")):
        runs = arms[name]["runs"]
        top1, agreement, kl = ([r[k] for r in runs] for k in ("top1", "agreement", "kl"))
        retained = [100 * t / teacher["top1"] for t in top1]
        rows.append(
            f"| {title} | {spread(top1)} | {spread(retained)} | {spread(agreement)} | {statistics.mean(kl):.3f} ± "
            f"{statistics.stdev(kl):.3f} |"
        )
    gains = [f["top1"] - c["top1"] for f, c in zip(arms["frd"]["runs"], arms["ce"]["runs"], strict=True)]
    listed = ", ".join(f"{g:+.2f}" for g in gains)
    return f"""# FRD against the classification loss alone

Written by `python benchmarks/frd_ablation.py` ({result["date"]}; {result["machine"]["cpu_model"]}, {result["machine"]["logical_cpus"]}
CPUs; PyTorch {result["versions"]["torch"]}, timm {result["versions"]["timm"]}). Figures of every run:
[json](../benchmarks/results/frd_ablation.json).

Task: cluttered digits, 112×112, {result["train_images"]} images to train on and {result["val_images"]} held out, made from disjoint
handwritten digits. Teacher: {teacher["name"]}, {teacher["macs"] / 1e6:.1f} MMACs, top-1 **{teacher["top1"]:.2f} %**. Student:
{student["name"]} ({"/".join(map(str, student["tokens"]))} tokens), {student["macs"] / 1e6:.1f} MMACs, **{teacher["macs"] / student["macs"]:.2f}×
fewer**. It starts from the teacher's weights, at {result["start_top1"]:.2f} %, and is trained for {result["epochs"]} epochs. Both arms
share images, order, augmentation, schedule, seeds ({len(gains)}) and learning rate: {result["lr"]:g} at a batch of 512, the best for the
classification loss of {", ".join(result["tuning_of_ce"])} with another seed. Mean ± standard deviation over seeds:

| student trained by | top-1 % | of the teacher's, % | agrees with the teacher, % | KL to the teacher |
|---|---|---|---|---|
{chr(10).join(rows)}

FRD over the classification loss, seed by seed, in points of top-1: {listed}; mean {statistics.mean(gains):+.2f}.
{longer_runs(result)}
![curves of an FRD student](frd_student.png)
![curves of a student by the classification loss](frd_ce.png)
"""


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--teacher-model", default="lvvit_micro", show_default=True)
@click.option("--model", default="sit_micro", show_default=True)
@click.option("--train-images", default=5000, show_default=True)
@click.option("--val-images", default=1500, show_default=True)
@click.option("--teacher-epochs", default=10, show_default=True)
@click.option("--teacher-lr", default=0.008, show_default=True)
@click.option("--epochs", default=8, show_default=True)
@click.option("--grid", default="0.008,0.016", show_default=True, help="Learning rates at a batch of 512.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, a thread each.")
@click.option(
    "--long-epochs",
    default=20,
    show_default=True,
    help="Also both arms for as many, with one seed; 0: not.",
)
@click.option("--teacher-only", is_flag=True, help="Stop once the teacher is trained.")
@click.option("--device", default="cpu", show_default=True, help="What to train on, as `train` takes it.")
@click.option("--workers", default=0, show_default=True, help="Processes that decode images, of each run.")
def main(
    work: Path, teacher_model: str, model: str, train_images: int, val_images: int, teacher_epochs: int, teacher_lr: float,
    epochs: int, grid: str, seeds: int, jobs: int, long_epochs: int, teacher_only: bool, device: str, workers: int,
) -> None:  # fmt: skip
    """Run what has not been run, and write the results."""
    from sit_deploy.models.card_file import read_card
    from training.curves import draw_curves

    data = work / f"data-{train_images}-{val_images}"
    if not data.exists():
        script = str(ROOT / "benchmarks" / "cluttered_digits.py")
        counts = ["--train", str(train_images), "--val", str(val_images)]
        subprocess.run([sys.executable, script, str(data), *counts], check=True)
    where = {"device": device, "workers": workers}
    plain = train(work / "plain", jobs, model=teacher_model, data="digits", seed=0, **where)
    scratch = {"model": teacher_model, "data": data, "init": plain["weights"], **PICTURES, **where}
    taught = train(
        work / "teacher",
        jobs,
        **scratch,
        epochs=teacher_epochs,
        lr=teacher_lr,
        warmup_epochs=1,
        min_lr=1.6e-4,
        seed=0,
    )
    if teacher_only:
        return
    teacher = Path(taught["weights"])

    def student(arm: str, lr: float, seed: int, longer: int = 0) -> tuple[str, float, int, Path]:
        run = work / (f"{arm}-long" if longer else f"{arm}-lr{lr:g}-seed{seed}")
        source = {"teacher": teacher} if arm == "frd" else {"init": teacher}
        schedule = {"epochs": longer or epochs, "lr": lr, "min_lr": 1.6e-4, "seed": seed}
        train(run, 1, model=model, data=data, **source, **PICTURES, **schedule, **where)
        return arm, lr, seed, run

    rates = [float(lr) for lr in grid.split(",")]
    with ThreadPoolExecutor(jobs) as pool:
        tuned = list(pool.map(lambda lr: student("ce", lr, TUNING_SEED), rates))
        scores = {lr: against_teacher(run / "model.safetensors", teacher, data) for _, lr, _, run in tuned}
        best = max(rates, key=lambda lr: scores[lr]["top1"])
        jobs_left = [(arm, best, seed) for seed in range(seeds) for arm in reversed(ARMS)]
        runs = list(pool.map(lambda job: student(*job), jobs_left))
        long = list(pool.map(lambda arm: student(arm, best, 0, long_epochs), ARMS)) if long_epochs else []
    arms: dict[str, Any] = {}
    for arm in ARMS:
        mine = sorted((seed, run) for a, _, seed, run in runs if a == arm)
        arms[arm] = {
            "runs": [
                {"seed": seed, **against_teacher(run / "model.safetensors", teacher, data)}
                for seed, run in mine
            ],
        }
    first = next(run for arm, _, seed, run in runs if arm == "frd" and seed == 0)
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "train_images": train_images,
        "val_images": val_images,
        "epochs": epochs,
        "lr": best,
        "tuning_of_ce": {f"{lr:g}": scores[lr] for lr in rates},
        "teacher": summary["teacher"],
        "student": {k: summary["student"][k] for k in ("name", "macs", "tokens")},
        "start_top1": start_accuracy(first),
        "arms": arms,
        "longer": {
            "epochs": long_epochs,
            **{arm: against_teacher(run / "model.safetensors", teacher, data) for arm, _, _, run in long},
        }
        if long
        else None,
        "recipes": {
            name: read_card(path).training["recipe"]
            for name, path in (
                ("plain", plain["weights"]),
                ("teacher", teacher),
                ("student", first / "model.safetensors"),
            )
        },
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": dataclasses.asdict(machine()),
    }
    path = ROOT / "benchmarks" / "results" / "frd_ablation.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "frd.md").write_text(table(result), encoding="utf-8")
    other = next(run for arm, _, seed, run in runs if arm == "ce" and seed == 0)
    for run, name in ((first, "student"), (other, "ce")):
        drawn = draw_curves(run, f"{model} on cluttered digits: {name}", summary["teacher"]["top1"])
        shutil.copyfile(drawn, ROOT / "docs" / f"frd_{name}.png")
    print(table(result))


if __name__ == "__main__":
    main()
