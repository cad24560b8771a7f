"""What `sit-deploy slim` reaches in two minutes on two cores: students of teachers that benchmarks/frd_ablation.py has trained.

    python benchmarks/slim_minutes.py WORK…                     # 120 seconds each, on a machine that does nothing else
    python benchmarks/slim_minutes.py WORK… --steps 600         # so many steps instead: the same figures on a busy one

WORK is a folder of benchmarks/frd_ablation.py: `plain` (a teacher of plain digits), `teacher` (of cluttered ones) and the images.
Every student is fitted on the training images without their labels, once a seed, and its accuracy is that on the held-out ones;
`start` is the student before its first step, as `train --teacher --no-warm-start` starts it. Results go to
benchmarks/results/slim_minutes.json, to which a later call adds.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engines.timing import machine  # noqa: E402

STUDENTS = {"lvvit_nano": "sit_nano", "lvvit_micro": "sit_micro"}
RESULTS = ROOT / "benchmarks" / "results" / "slim_minutes.json"


def start_top1(request: Any, val: str) -> float:
    """Return the top-1 of the student before it is fitted, in percent."""
    import torch

    from sit_deploy.data.labelled import open_labelled
    from sit_deploy.models.card_file import read_card
    from sit_deploy.models.load import load_model
    from sit_deploy.processes import World
    from training.loaders import HeldOut
    from training.metrics import evaluate
    from training.slim import Pictures, arm

    loaded = load_model(request.teacher().model, request.checkpoint)
    card = read_card(request.checkpoint)
    model = arm(loaded.model, request.config(request.teacher()), request.seed)
    samples = open_labelled(val, card.classes, card.num_classes)
    batches = torch.utils.data.DataLoader(HeldOut(Pictures(samples), card.preprocessing, 0), batch_size=64)
    return evaluate(model, batches, World(0, 1, torch.device("cpu"))).top1


def fitted(
    teacher: Path, student: str, images: Path, val: str, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what one student reached, and the CPU time that it took."""
    from training.slim import slim
    from training.slim_request import SlimRequest

    with tempfile.TemporaryDirectory() as folder:
        request = SlimRequest(
            student,
            images,
            Path(folder) / "s.safetensors",
            checkpoint=teacher,
            val_data=val,
            seed=seed,
            device="cpu",
            **options,
        )
        begun = time.process_time()
        result = slim(request).to_dict()
        result["cpu_seconds_in_all"] = round(time.process_time() - begun, 1)
        result["start_top1"] = start_top1(request, val)
    del result["weights"]
    return {"student": student, "seed": seed, **result}


@click.command()
@click.argument("works", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--steps", type=int, help="Steps of fitting, in place of 120 seconds.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--task", "tasks", multiple=True, default=("plain", "cluttered"), show_default=True)
def main(works: tuple[Path, ...], steps: int | None, seeds: tuple[int, ...], tasks: tuple[str, ...]) -> None:
    """Fit what is asked for, and add it to the results."""
    from sit_deploy.data.datasets import open_data

    before = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []
    options = {"steps": steps} if steps else {"seconds": 120.0}
    runs = []
    for work in works:
        student = STUDENTS[
            json.loads((work / "teacher" / "model.json").read_text(encoding="utf-8"))["model"]["name"]
        ]
        digits = work / "digits-train"
        if "plain" in tasks and not digits.exists():
            digits.mkdir()
            for i, (image, _) in enumerate(open_data("digits").train):
                image.save(digits / f"{i:04d}.png")
        (cluttered,) = work.glob("data-*")
        for task, images, val in (
            ("plain", digits, "digits"),
            ("cluttered", cluttered / "train", str(cluttered / "val")),
        ):
            if task not in tasks:
                continue
            teacher = work / ("plain" if task == "plain" else "teacher") / "model.safetensors"
            for seed in seeds:
                run = {"task": task, **fitted(teacher, student, images, val, seed, options)}
                runs.append(run)
                print(
                    f"{student} {task} seed {seed}: teacher {run['teacher_top1']:.2f} %, start {run['start_top1']:.2f} %, fitted {run['top1']:.2f} %; "
                    f"{run['fit']['steps']} steps, {run['fit']['seconds']:.0f} s, {run['cpu_seconds_in_all']} CPU s in all",
                    flush=True,
                )
    new = {(r["student"], r["task"], r["seed"], bool(steps)) for r in runs}
    kept = [r for r in before if (r["student"], r["task"], r["seed"], r["by_steps"]) not in new]
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "runs": [*kept, *({**r, "by_steps": bool(steps)} for r in runs)],
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": dataclasses.asdict(machine()),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
