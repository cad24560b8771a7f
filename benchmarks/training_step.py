"""What the training loop adds to a bare step, side by side in one process, and how long it waits for images.

    python benchmarks/training_step.py                        # sit_nano by FRD on digits, 2 threads
    python benchmarks/training_step.py --model sit_s --batch-size 64 --device cuda --data imagenet/

    bare   the same task, optimiser and images on the device: forward, backward, optimiser step, nothing else
    loop   an epoch of `training.loop`: loading and augmenting, mixup, learning rate, loss checks, averaged weights, log

They take turns, a slice of steps each. overhead is the loop's time without its waiting for images, over bare; waiting is
apart, because it depends on the images and the workers. Weights are random: nothing here depends on them. Results go to
benchmarks/results/training_step_<model>_<device>.json.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
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


def bare_steps(run: Any, batch: tuple[Any, Any], steps: int) -> float:
    """Return the seconds that `steps` steps on one batch take."""
    images, targets = batch
    _wait(run)
    started = time.perf_counter()
    for _ in range(steps):
        with run.autocast():
            loss = run.task(images, targets)["loss"]
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.optimiser.zero_grad(set_to_none=True)
    _wait(run)
    return time.perf_counter() - started


def loop_steps(run: Any, epoch: int) -> tuple[float, float]:
    """Return the seconds of an epoch of the loop, and the share of them spent waiting for images."""
    from training.loop import _train_epoch
    from training.stop_signal import StopSignal

    run.position.epoch, run.position.step, run.position.sums = epoch, 0, {}
    _wait(run)
    started = time.perf_counter()
    means = _train_epoch(run, epoch, StopSignal())
    _wait(run)
    return time.perf_counter() - started, means["waiting_for_data"]


def _wait(run: Any) -> None:
    import torch

    if run.world.device.type == "cuda":
        torch.cuda.synchronize()


def save_teacher(model: str, classes: int, path: Path) -> None:
    """Write random weights of a student's teacher."""
    import torch
    from safetensors.torch import save_file

    from sit_deploy.models import create_model, get_config

    torch.manual_seed(0)
    save_file(create_model(get_config(model).teacher, num_classes=classes).state_dict(), path)


@click.command()
@click.option("--model", default="sit_nano", show_default=True)
@click.option("--data", default="digits", show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--workers", type=int, default=None)
@click.option("--rounds", default=5, show_default=True)
@click.option("--compile", is_flag=True)
def main(
    model: str,
    data: str,
    batch_size: int,
    device: str,
    threads: int,
    workers: int | None,
    rounds: int,
    compile: bool,
) -> None:
    """Measure and write the result."""
    import torch

    from sit_deploy.data.datasets import open_data
    from sit_deploy.processes import join_world
    from training.reporter import Silent
    from training.request import TrainRequest
    from training.set_up import set_up

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, join_world(device) as world:
        teacher = Path(folder, "teacher.safetensors")
        save_teacher(model, open_data(data).num_classes, teacher)
        overrides = (("batch_size", batch_size), ("ema_decay", 0.999), ("repeats", 1))
        request = TrainRequest(
            model=model, data=data, output=Path(folder, "run"), teacher=teacher, overrides=overrides,
            device=device, workers=workers, compile=compile,
        )  # fmt: skip
        run = set_up(request, world, Silent())
        run.open()
        images, labels = next(iter(run.loaders.train))
        batch = run.mix(images.to(world.device), labels.to(world.device))
        steps = run.loaders.steps
        bare_steps(run, batch, min(10, steps))
        loop_steps(run, 0)
        rows = []
        for epoch in range(1, rounds + 1):
            bare = bare_steps(run, batch, steps)
            loop, waiting = loop_steps(run, epoch)
            rows.append(
                {"bare": bare, "loop": loop, "waiting": waiting, "overhead": loop * (1 - waiting) / bare - 1}
            )
            print(
                f"bare {1e3 * bare / steps:.1f} ms, loop {1e3 * loop / steps:.1f} ms a step, waiting {waiting:.1%}"
            )
        run.log.close()
    medians = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
    facts = {
        "model": model, "data": data, "batch_size": batch_size, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads, "rounds": rounds, "steps_a_round": steps, "compile": compile,
        "bare_ms_a_step": round(1e3 * medians["bare"] / steps, 2),
        "loop_ms_a_step": round(1e3 * medians["loop"] / steps, 2),
        "loop_images_per_second": round(steps * batch_size / medians["loop"], 1),
        "overhead_percent": round(100 * medians["overhead"], 2),
        "waiting_percent": round(100 * medians["waiting"], 2),
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": dataclasses.asdict(machine()),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    path = ROOT / "benchmarks" / "results" / f"training_step_{model}_{device}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
