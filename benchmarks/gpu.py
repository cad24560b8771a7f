"""SiT, its teachers and plain ViTs on one GPU: PyTorch eager and compiled, and whichever TensorRT runs there, side by side.

    python benchmarks/gpu.py                         # 12 minutes; benchmarks/results/gpu_NAME.json
    python benchmarks/gpu.py --write-docs            # and the table of docs/gpu.md
    python benchmarks/gpu.py --models sit_s,sit_deit_s --batches 1,64      # of these, every runtime at every batch size
    python benchmarks/gpu.py --protocol levit        # LeViT's, which SiT's paper follows: large batch, AMP, a minute each
    python benchmarks/gpu.py --device cpu --models sit_nano,lvvit_nano --batches 1,2 --seconds 0.2     # to try the script

The runtimes of a model take turns at each batch size, and a ratio is the median of the rounds' ratios. Times are the GPU's own,
with images already there; end to end, with transfers, apart. Weights are random: speed does not depend on them. Each model has a process
of its own, and what fails, dies, hangs or finds no time or memory there is a row that says so; rows are written as they come.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import engines  # noqa: E402
from benchmarks import gpu_worker  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from benchmarks.gpu_cells import Cell, low_type  # noqa: E402
from benchmarks.gpu_page import macs, markdown, over_teachers, published, targets  # noqa: E402
from benchmarks.gpu_worker import AMP, COMPILED, EAGER, Job  # noqa: E402
from engines.files import atomic_path  # noqa: E402
from engines.gpus import device_number, find_gpus, telemetry_of  # noqa: E402
from sit_deploy.errors import Error  # noqa: E402
from sit_deploy.models.catalog import get_config  # noqa: E402

KINDS = ("tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp16", "int8", "fp8")
BATCHES = "1,8,32,128,256"
COMPILED_AT = (1, 128)  # a compilation is half a minute for each shape
LEVIT_MODELS = "sit_t,lvvit_t,sit_xs,sit_s,lvvit_s,sit_m,lvvit_m,sit_l,lvvit_l"

# by default: what the targets need and what others have published, the most wanted first
SELECTION: dict[str, dict[str, tuple[int, ...]]] = {
    "sit_s": {
        EAGER: (1, 32, 128),
        "fp16": (1, 32, 128),
        "int8": (1, 32, 128),
        "fp8": (1, 32, 128),
        COMPILED: COMPILED_AT,
    },
    "lvvit_s": {EAGER: (1, 32, 128), "fp16": (1, 32, 128)},
    "sit_xs": {EAGER: (1, 32, 128), "fp16": (1, 32, 128)},
    "vit_base_patch16_224": {EAGER: (1, 32), "fp16": (1, 8, 32), "int8": (1, 8, 32)},
    "sit_l": {EAGER: (1, 256), "fp16": (1, 256)},
    "deit_small_patch16_224": {EAGER: (1, 32), "fp16": (1, 32)},
    "deit_base_patch16_224": {EAGER: (1, 32), "fp16": (1, 32)},
}
# seconds that things are reckoned to take, by which models share the time; 8 bits are calibrated, and timed against FP16
START, CELL = 10.0, 2.0
MAKING = {EAGER: 5.0, AMP: 5.0, COMPILED: 30.0, "fp16": 30.0, "int8": 60.0, "fp8": 60.0}
TIMED_FROM, KILLED_AFTER = (
    0.92,
    20.0,
)  # share of the time for what is built; seconds that a worker may overrun


class NoGpuHereError(click.ClickException):
    exit_code = 2


def positive(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no length of time; NaN is none, and compares with nothing."""
    if value is not None and not 0 < value < float("inf"):
        raise click.UsageError(f"{option.opts[0]} takes a number above 0, got {value}")
    return value


def jobs_of(
    models: str | None, batches: str, kinds: tuple[str, ...], compiles: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return what is timed: batch sizes by runtime by model. Of models that are named, everything.

    Args:
        models: names, separated by commas; None for the default selection.
        batches: sizes for models that are named.
        kinds: engines that run here.
        compiles: whether compiled PyTorch is wanted.

    Raises:
        click.ClickException: an unknown model, or sizes that are none.
    """
    if models is None:
        wanted = SELECTION
    else:
        sizes = batch_sizes(batches)
        few = tuple(size for size in sizes if size in COMPILED_AT) or sizes[:1]
        every = {EAGER: sizes, **dict.fromkeys(PRECISIONS, sizes), COMPILED: few}
        wanted = {name: every for name in model_names(models)}
    chosen = {}
    for name, runtimes in wanted.items():
        chosen[name] = {}
        for runtime, sizes in runtimes.items():
            if runtime in PRECISIONS:
                chosen[name] |= {f"{kind} {runtime}": sizes for kind in kinds}
            elif runtime != COMPILED or compiles:
                chosen[name][runtime] = sizes
    return chosen


def model_names(text: str) -> list[str]:
    """Return names as they are given; each is one that can be built."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise click.UsageError("--models names nothing")
    for name in names:
        try:
            get_config(name)
        except Error as error:
            raise click.UsageError(str(error)) from None
    return names


def batch_sizes(text: str) -> tuple[int, ...]:
    """Return numbers from 1 as they are given."""
    for word in text.split(","):
        if not word.strip().isdecimal() or int(word) < 1:
            raise click.UsageError(f"--batches takes numbers from 1, got {word!r}")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def reckoned(runtimes: dict[str, tuple[int, ...]]) -> float:
    """Return the seconds that a model is reckoned to take."""
    making = sum(
        MAKING[r if r in MAKING else r.split()[1]] * (len(sizes) if r == COMPILED else 1)
        for r, sizes in runtimes.items()
    )
    return START + making + CELL * sum(map(len, runtimes.values()))


@dataclass
class Results:
    """What is known so far, and its file, which is whole at any moment.

    Attributes:
        path: of the file.
        facts: of the run, as JSON values.
        peak: of a product, in FLOP/s.
    """

    path: Path
    facts: dict[str, Any]
    peak: float
    cells: list[Cell] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, cell: Cell) -> None:
        """Take a row and write it."""
        self.cells.append(cell)
        done = (
            f"skipped: {cell.skipped}"
            if cell.skipped
            else f"{1e3 * cell.batch / cell.images_per_second():.3f} ms"
        )
        click.echo(f"  {cell.model} {cell.batch} {cell.runtime}: {done}", err=True)
        self.write(complete=False)

    def write(self, complete: bool) -> dict[str, Any]:
        """Write the file, and return what is in it."""
        rows = [cell.to_dict() for cell in self.cells]
        for row in rows:
            work = macs(row["model"])
            if not row["skipped"]:
                row["share_of_peak"] = work and 2 * work * row["images_per_second"] / self.peak
        result = {
            **self.facts,
            "complete": complete,
            "seconds": round(time.monotonic() - self.started, 1),
            "cells": rows,
            "over_teachers": over_teachers(self.cells),
            "targets": targets(self.cells, self.peak),
            "published": published(self.cells),
        }
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return result


def builds_for_another(device: str) -> bool:
    """Whether an engine that is built here is for another model of GPU than is timed: builders take the first."""
    gpus, number = find_gpus().gpus, device_number(device)
    return number < len(gpus) and gpus[number] != gpus[0]


def engines_here(device: str, folder: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the engines that serve this GPU, and why the others do not: each is tried on one product before any model is.

    Args:
        device: of PyTorch.
        folder: for what is built.
    """
    kinds, refused = [], {}
    for kind in KINDS:
        answer = engines.get(kind).probe()
        if not device.startswith("cuda") or not answer.can_run:
            refused[kind] = answer.reason
            continue
        if builds_for_another(device):
            number = device_number(device)
            refused[kind] = (
                f"builds for the first GPU, which is another model than cuda:{number}; set CUDA_VISIBLE_DEVICES={number} and pass "
                "--device cuda"
            )
            continue
        click.echo(f"trying {kind}", err=True)
        why, silence = gpu_worker.ask(gpu_worker.trial, (kind, folder), gpu_worker.START_SECONDS)
        if why or silence:
            refused[kind] = f"does not run one product here: {why or silence}"
        else:
            kinds.append(kind)
    return tuple(kinds), refused


def time_all(
    chosen: dict[str, dict[str, tuple[int, ...]]], results: Results, job: Job, seconds: float, levit: bool
) -> None:
    """Time model after model, each in its share of the time.

    Args:
        chosen: batch sizes by runtime by model.
        results: takes the rows.
        job: what all have in common.
        seconds: for all of it.
        levit: by LeViT's protocol.
    """
    started, total = time.monotonic(), sum(map(reckoned, chosen.values()))
    gone, crashes = 0.0, dict[str, list[str]]()
    stop = started + seconds
    for name, runtimes in chosen.items():
        click.echo(f"{name} ({time.monotonic() - started:.0f} s)", err=True)
        gone += reckoned(runtimes)
        own = Job(
            name,
            job.device,
            runtimes,
            job.seconds,
            job.folder,
            started + TIMED_FROM * seconds * gone / total,
            stop,
            {
                runtime: f"left out: {why[-1]} with {len(why)} models before"
                for runtime, why in crashes.items()
                if len(why) > 1
            },
        )
        time_it = gpu_worker.time_levit if levit else gpu_worker.time_model
        died = gpu_worker.watch(own, results.add, stop + KILLED_AFTER, time_it=time_it)
        for runtime, why in died.items():
            crashes.setdefault(runtime, []).append(why)


@click.command(help=__doc__.splitlines()[0])
@click.option("--device", default="cuda", show_default=True)
@click.option("--models", default=None, help="Names, separated by commas.  [default: a selection]")
@click.option("--batches", default=BATCHES, show_default=True, help="Of models that are named.")
@click.option(
    "--seconds", type=float, callback=positive, help="Timing of a cell.  [default: 0.6; 60 with levit]"
)
@click.option(
    "--minutes", type=float, default=12.0, callback=positive, show_default=True, help="For all models."
)
@click.option(
    "--no-compile", is_flag=True, help="Leave torch.compile out, which takes half a minute a shape."
)
@click.option("--protocol", type=click.Choice(["turns", "levit"]), default="turns", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=None)
@click.option("--write-docs", is_flag=True, help="Put the tables into docs/gpu.md.")
def main(
    device: str,
    models: str | None,
    batches: str,
    seconds: float | None,
    minutes: float,
    no_compile: bool,
    protocol: str,
    output: Path | None,
    write_docs: bool,
) -> None:
    levit = protocol == "levit"
    if models is not None:
        model_names(models)
    sizes = batch_sizes(batches)
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise click.UsageError(f"--device takes cpu, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NoGpuHereError("PyTorch finds no GPU; pass --device cpu to try the script")
    if device.startswith("cuda") and device_number(device) >= torch.cuda.device_count():
        raise NoGpuHereError(
            f"there is no {device}; PyTorch finds {torch.cuda.device_count()} GPUs, numbered from 0"
        )
    with tempfile.TemporaryDirectory(prefix="sit-deploy-gpu-") as folder:
        seen, silence = gpu_worker.ask(gpu_worker.facts, (device,), gpu_worker.START_SECONDS)
        if silence:
            raise click.ClickException(f"{device} does not multiply two matrices: {silence}")
        if levit:
            kinds, refused = (), dict.fromkeys(KINDS, "not part of this protocol")
            names = model_names(models or LEVIT_MODELS)
            chosen = {name: {AMP: (max(sizes),)} for name in names}
        else:
            kinds, refused = engines_here(device, folder)
            chosen = jobs_of(models, batches, kinds, not no_compile)
        if no_compile:
            refused["torch.compile"] = "--no-compile"
        slug = re.sub(r"[^a-z0-9]+", "_", seen["name"].lower()).strip("_")
        results = Results(
            output or ROOT / "benchmarks" / "results" / f"gpu_{slug}{'_levit' if levit else ''}.json",
            {
                "protocol": protocol,
                "date": datetime.date.today().isoformat(),
                "device": {name: seen[name] for name in ("name", "telemetry")},
                "low_type": str(low_type(torch.device(device))).removeprefix("torch."),
                "versions": {name: version(name) for name in ("torch", "timm", "onnx", "numpy")},
                "runtimes_skipped": refused,
                "matmul_peak": seen["peak"],
            },
            seen["peak"]["flops"],
        )
        results.write(complete=False)  # what cannot be written is said before any work
        complete = False
        try:
            common = Job("", device, {}, seconds or (60.0 if levit else 0.6), Path(folder), 0.0, 0.0)
            budget = 60 * minutes if not levit else 3600.0 * len(chosen)
            time_all(chosen, results, common, budget, levit)
            complete = True
        except KeyboardInterrupt:
            click.echo("stopped: what was measured so far is written, and marked incomplete", err=True)
    results.facts["telemetry_after"] = telemetry_of(device)
    result = results.write(complete)
    text = markdown(result)
    click.echo(text)
    if write_docs:
        write_between("gpu.md", "gpu-table", text)


if __name__ == "__main__":
    main()
