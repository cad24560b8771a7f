"""SiT and its teachers on one GPU: PyTorch eager and compiled, and whichever TensorRT runs there, side by side.

    python benchmarks/gpu.py                         # under 8 minutes; benchmarks/results/gpu_NAME.json
    python benchmarks/gpu.py --write-docs            # and the table of docs/gpu.md
    python benchmarks/gpu.py --protocol levit        # LeViT's, which SiT's paper follows: large batch, AMP, a minute each
    python benchmarks/gpu.py --device cpu --models sit_nano,lvvit_nano --batches 1,2 --seconds 0.2     # to try the script

The runtimes of a model take turns at each batch size, and a ratio is the median of the rounds' ratios. Times are the GPU's own,
with images already there; end to end, with transfers, apart. Weights are random: speed does not depend on them. What finds no
time or no memory is listed as skipped.
"""

from __future__ import annotations

import datetime
import json
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import engines  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from benchmarks.gpu_cells import (  # noqa: E402
    Candidate,
    Cell,
    autocast_candidate,
    low_type,
    matmul_peak,
    tensorrt_candidate,
    time_turn_about,
    torch_candidate,
)
from benchmarks.random_weights import random_model  # noqa: E402
from engines.gpus import telemetry  # noqa: E402
from sit_deploy.models.catalog import get_config  # noqa: E402
from sit_deploy.models.cost import cost  # noqa: E402

MODELS = "sit_xs,lvvit_s,sit_s,sit_l,lvvit_l,sit_m,lvvit_m"
LEVIT_MODELS = "sit_t,lvvit_t,sit_xs,sit_s,lvvit_s,sit_m,lvvit_m,sit_l,lvvit_l"
TEACHERS = {
    "sit_nano": "lvvit_nano",
    "sit_t": "lvvit_t",
    "sit_xs": "lvvit_s",
    "sit_s": "lvvit_s",
    "sit_m": "lvvit_m",
    "sit_l": "lvvit_l",
}
COMPILED_AT = (1, 128)  # a compilation is half a minute for each shape
PRECISIONS = ("fp16", "int8", "fp8")


@dataclass(frozen=True)
class Plan:
    """What is timed of every model.

    Attributes:
        device: where.
        batches: sizes of a batch.
        seconds: timing of a cell.
        kinds: engines beside PyTorch.
        folder: for engines and graphs.
        compiles: whether compiled PyTorch is timed too.
    """

    device: torch.device
    batches: tuple[int, ...]
    seconds: float
    kinds: tuple[str, ...]
    folder: Path
    compiles: bool = True


def time_model(name: str, plan: Plan, deadline: float) -> list[Cell]:
    """Time every runtime of one model at every batch size, as long as there is time.

    Args:
        name: of the model.
        plan: what is timed.
        deadline: by `time.perf_counter`.
    """
    device, batches = plan.device, plan.batches
    cells: list[Cell] = []
    makers: dict[str, Any] = {"pytorch eager": lambda: torch_candidate(random_model(name), device, False)}
    for kind in plan.kinds:
        for precision in PRECISIONS:
            makers[f"{kind} {precision}"] = lambda k=kind, p=precision: tensorrt_candidate(
                k, name, p, batches, plan.folder
            )
    candidates: dict[str, Candidate] = {}
    skipped: dict[str, str] = {}
    for runtime, make in makers.items():
        if time.perf_counter() > deadline and candidates:
            skipped[runtime] = "out of time"
            continue
        try:
            candidates[runtime] = make()
        except torch.OutOfMemoryError:
            skipped[runtime] = "out of memory"
        except Exception as error:  # a runtime that cannot take the model is a result of the comparison
            skipped[runtime] = " ".join(f"{type(error).__name__}: {error}".split())
    size = get_config(name).image_size
    try:
        for batch in batches:
            row = {runtime: Cell(name, runtime, batch) for runtime in candidates}
            here = dict(candidates)
            for runtime, why in skipped.items():
                cells.append(Cell(name, runtime, batch, skipped=why))
            compiled = Cell(name, "pytorch compiled", batch)
            if not plan.compiles:
                compiled.skipped = "--no-compile"
            elif batch not in COMPILED_AT and device.type == "cuda":
                compiled.skipped = f"compiled at batches {COMPILED_AT} only"
            elif time.perf_counter() > deadline:
                compiled.skipped = "out of time"
            row["pytorch compiled"] = compiled
            here["pytorch compiled"] = (
                torch_candidate(random_model(name), device, True)
                if compiled.skipped is None
                else Candidate(print, print)
            )
            if time.perf_counter() > deadline and cells:
                for cell in row.values():
                    cell.skipped = cell.skipped or "out of time"
            time_turn_about(list(row.values()), list(here.values()), device, (size, size), plan.seconds)
            cells += row.values()
            torch.compiler.reset()
    finally:
        for candidate in candidates.values():
            candidate.close()
    return cells


def time_levit(name: str, device: torch.device, batch: int, seconds: float) -> Cell:
    """LeViT's protocol: AMP on FP32 weights, the largest of 256, 128, ... images that fits, throughput alone."""
    size = get_config(name).image_size
    while True:
        cell = Cell(name, "pytorch amp", batch)
        time_turn_about(
            [cell], [autocast_candidate(random_model(name), device)], device, (size, size), seconds
        )
        if cell.skipped != "out of memory" or batch == 1:
            return cell
        batch //= 2


def macs(name: str) -> int:
    """Multiply-accumulates of an image in the deployed model."""
    return cost(get_config(name)).macs


def find(cells: list[Cell], model: str, runtime: str, batch: int) -> Cell | None:
    for cell in cells:
        if (cell.model, cell.runtime, cell.batch) == (model, runtime, batch) and not cell.skipped:
            return cell
    return None


def speedup(ours: Cell | None, theirs: Cell | None) -> float | None:
    """How much faster `ours` is an image, by the median of the rounds' ratios; None where one was not measured."""
    if ours is None or theirs is None:
        return None
    scale = ours.batch / theirs.batch
    pairs = zip(ours.medians(), theirs.medians(), strict=True)
    return statistics.median(scale * b / a for a, b in pairs)


def over_teachers(cells: list[Cell]) -> list[dict[str, Any]]:
    """Realised speed-ups of students over teachers in each runtime, beside the ratio of their work."""
    rows = []
    for cell in cells:
        teacher = TEACHERS.get(cell.model)
        if teacher is None or cell.skipped:
            continue
        gain = speedup(cell, find(cells, teacher, cell.runtime, cell.batch))
        if gain is not None:
            work = macs(teacher) / macs(cell.model)
            rows.append(
                {"model": cell.model, "teacher": teacher, "runtime": cell.runtime, "batch": cell.batch, "speedup": gain, "macs_ratio": work}
            )  # fmt: skip
    return rows


def targets(cells: list[Cell], peak: float) -> list[dict[str, Any]]:
    """What the project wants to reach on a GPU, and what was measured: True, False, or None for not measured."""
    engine = next(
        (c.runtime for c in cells if c.runtime.endswith(" fp16") and not c.skipped), "tensorrt fp16"
    )
    rows: list[tuple[str, float, float | None]] = []
    for batch, least in ((1, 1.5), (128, 1.2)):
        gain = speedup(find(cells, "sit_s", engine, batch), find(cells, "sit_s", "pytorch compiled", batch))
        rows.append((f"sit_s FP16 engine over torch.compile at batch {batch}", least, gain))
    large = find(cells, "sit_l", engine, 256)
    share = None if large is None else 2 * macs("sit_l") * large.images_per_second() / peak
    rows.append(("sit_l FP16 engine at batch 256, share of the matmul peak", 0.45, share))
    best = None
    for batch in sorted({cell.batch for cell in cells}):
        gain = speedup(find(cells, "sit_xs", engine, batch), find(cells, "lvvit_s", engine, batch))
        best = gain if best is None or (gain is not None and gain > best) else best
    rows.append(("sit_xs over lvvit_s in images/s, FP16 engine, best batch", 3.5, best))
    return [
        {"target": text, "at_least": least, "measured": got, "met": None if got is None else got >= least}
        for text, least, got in rows
    ]


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/gpu.md."""
    where = f"{result['device']['name']}, {result['date']}, PyTorch {result['versions']['torch']}"
    lines = [
        f"{where}; matmul peak {result['matmul_peak']['flops'] / 1e12:.0f} TFLOP/s in {result['low_type']}.",
        "",
    ]
    lines += [
        "| model | batch | runtime | ms | end to end ms | images/s | share of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in result["cells"]:
        head = f"| {cell['model']} | {cell['batch']} | {cell['runtime']} |"
        if cell["skipped"]:
            lines.append(f"{head} {cell['skipped'].replace('|', '/')} | | | |")
            continue
        lines.append(
            f"{head} {cell['device']['p50_ms']:.3f} | {cell['end_to_end']['p50_ms']:.3f} | "
            f"{cell['images_per_second']:.0f} | {cell['share_of_peak']:.1%} |"
        )
    lines += [
        "",
        "| student | teacher | runtime | batch | faster | fewer MACs |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["over_teachers"]:
        lines.append(
            f"| {row['model']} | {row['teacher']} | {row['runtime']} | {row['batch']} | {row['speedup']:.2f}× | {row['macs_ratio']:.2f}× |"
        )
    lines += ["", "| wanted | at least | measured |", "|---|---|---|"]
    for row in result["targets"]:
        got = (
            "not measured"
            if row["met"] is None
            else f"{row['measured']:.2f}, {'met' if row['met'] else 'not met'}"
        )
        lines.append(f"| {row['target']} | {row['at_least']} | {got} |")
    skipped = "; ".join(f"{kind}: {why}" for kind, why in result["runtimes_skipped"].items())
    return "\n".join([*lines, "", f"Not run: {skipped}." if skipped else ""]).rstrip()


def _device_facts(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"name": torch.cuda.get_device_name(device), "telemetry": telemetry(device.index or 0)}
    from engines.timing import machine

    return {"name": machine().cpu_model, "telemetry": None}


@click.command(help=__doc__.splitlines()[0])
@click.option("--device", default="cuda", show_default=True)
@click.option("--models", default=None, help="Names, separated by commas.")
@click.option("--batches", default="1,8,32,128,256", show_default=True)
@click.option("--seconds", type=float, default=None, help="Timing of a cell.  [default: 0.6; 60 with levit]")
@click.option(
    "--minutes", type=float, default=7.5, show_default=True, help="Budget, divided over the models."
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
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("PyTorch finds no GPU; pass --device cpu to try the script")
    place, levit = torch.device(device), protocol == "levit"
    names = (models or (LEVIT_MODELS if levit else MODELS)).split(",")
    sizes = tuple(map(int, batches.split(",")))
    kinds, refused = [], {}
    for kind in ("tensorrt", "tensorrt-rtx"):
        answer = engines.get(kind).probe()
        if answer.can_run and place.type == "cuda" and not levit:
            kinds.append(kind)
        else:
            refused[kind] = "not part of this protocol" if levit else answer.reason
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before, peak = _device_facts(place), matmul_peak(place)
    cells: list[Cell] = []
    started, complete = time.perf_counter(), False
    try:
        with tempfile.TemporaryDirectory(prefix="sit-deploy-gpu-") as folder:
            for index, name in enumerate(names):
                click.echo(f"{name} ({time.perf_counter() - started:.0f} s)", err=True)
                if levit:
                    cells.append(time_levit(name, place, max(sizes), seconds or 60.0))
                    continue
                deadline = started + 60 * minutes * (index + 1) / len(names)
                plan = Plan(place, sizes, seconds or 0.6, tuple(kinds), Path(folder), not no_compile)
                cells += time_model(name, plan, deadline)
        complete = True
    except KeyboardInterrupt:
        click.echo("stopped: what was measured so far is written, and marked incomplete", err=True)
    rows = [cell.to_dict() for cell in cells]
    for row in rows:
        if not row["skipped"]:
            row["share_of_peak"] = 2 * macs(row["model"]) * row["images_per_second"] / peak["flops"]
    result = {
        "protocol": protocol,
        "complete": complete,
        "date": datetime.date.today().isoformat(),
        "device": before,
        "telemetry_after": _device_facts(place)["telemetry"],
        "low_type": str(low_type(place)).removeprefix("torch."),
        "versions": {name: version(name) for name in ("torch", "timm", "onnx", "numpy")},
        "runtimes_skipped": refused,
        "matmul_peak": peak,
        "seconds": round(time.perf_counter() - started, 1),
        "cells": rows,
        "over_teachers": over_teachers(cells),
        "targets": targets(cells, peak["flops"]),
    }
    slug = re.sub(r"[^a-z0-9]+", "_", before["name"].lower()).strip("_")
    path = output or ROOT / "benchmarks" / "results" / f"gpu_{slug}{'_levit' if levit else ''}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = markdown(result)
    click.echo(text)
    if write_docs:
        write_between("gpu.md", "gpu-table", text)


if __name__ == "__main__":
    main()
