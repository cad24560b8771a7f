"""Every way to run a SiT on this CPU, in one run: PyTorch, ONNX Runtime, OpenVINO, quantizers, and sit-deploy on each engine.

    python benchmarks/runtime_peers.py --write-docs            # sit_s, sit_xs, lvvit_s at batch 1 and 8, FP32 and INT8
    python benchmarks/runtime_peers.py --pairs --write-docs    # students against their teachers on our engines, FP32, batch 1
    python benchmarks/runtime_peers.py --models sit_nano,lvvit_nano --rounds 2 --seconds 0.1 --output nano.json   # to try the script

All have the same random weights (every foldable parameter away from its initial value) and the same number of threads. The
logits of each are compared with PyTorch's before it is timed: in FP32 they may differ by 1e-4 of their standard deviation, in
INT8 the SQNR is told. Then each has a process of its own and they take turns; a ratio is the median of the rounds' ratios. After
the ways to run each model, the models are timed against each other on our engines: what slimming gains there.

Optimum and NNCF have virtual environments of their own, WORK/env-NAME, made from benchmarks/peers/requirements-NAME.txt where
they are not there yet, which takes minutes and 6 GB; `--without optimum,nncf` does without. What cannot be run is listed with
the reason. TensorRT is `benchmarks/gpu.py`'s. Figures go to benchmarks/results/runtime_peers.json (of `--pairs`,
runtime_pairs.json), tables and picture to docs/benchmarks.md.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks import runtime_peers_page as page  # noqa: E402
from benchmarks.runtime_peers_cells import (  # noqa: E402
    CANDIDATES,
    ENGINES,
    PLAIN,
    Candidate,
    Cell,
    Model,
    Setting,
    make_model,
    prepare,
)
from benchmarks.runtime_peers_kept import KeptCells  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from engines.gpus import find_gpus  # noqa: E402
from engines.speedup import held_up, speedup  # noqa: E402
from engines.timing import TimingOptions, WorkerResult, WorkerSpec, alternate, machine  # noqa: E402
from sit_deploy.errors import InputError  # noqa: E402
from sit_deploy.models.catalog import get_config  # noqa: E402
from sit_deploy.models.cost import cost  # noqa: E402

MODELS = "sit_s,sit_xs,lvvit_s"
TEACHERS = {
    "sit_nano": "lvvit_nano",
    "sit_micro": "lvvit_micro",
    "sit_t": "lvvit_t",
    "sit_xs": "lvvit_s",
    "sit_s": "lvvit_s",
    "sit_m": "lvvit_m",
    "sit_l": "lvvit_l",
}
PAIRS = "sit_t/lvvit_t,sit_xs/lvvit_s,sit_s/lvvit_s,sit_m/lvvit_m,sit_l/lvvit_l"
AIMS = {"sit_t": 3.4, "sit_xs": 3.5, "sit_s": 1.35, "sit_m": 1.45, "sit_l": 1.6}  # speed-up over the teacher
PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "onnxscript", "timm", "numpy")
NO_FIGURES = ("work", "keep", "only_make", "output", "as_json", "write_docs")  # options
WARM_UP_SECONDS = 0.5
LEFT_OUT = "left out by --without"
ON_GPU = ("Torch-TensorRT", "TensorRT", "sit-deploy, TensorRT")


def gain(slow: WorkerResult, fast: WorkerResult, work: float = 1.0) -> dict[str, Any]:
    """How many times as fast the second is, with `work` times less to do: `gains.fields`."""
    return gains.fields(speedup(slow, fast, ("the slower", "the faster"), work))


def latency(result: WorkerResult, batch: int) -> dict[str, Any]:
    """JSON values of a timing."""
    stats = result.stats
    return {
        **{key: getattr(stats, key) for key in ("p50_ms", "p90_ms", "min_ms", "iterations")},
        "images_per_second": 1e3 * batch / stats.p50_ms,
        "round_medians_ms": result.round_medians_ms,
        "quiet": result.quiet,
        "held_up": held_up("it", result),
    }


def measure(
    setting: Setting, without: frozenset[str], rounds: int, seconds: float
) -> tuple[list[Cell], list]:
    """Make, compare and time every candidate of a model at a batch size; returns them, and the rows of the results."""
    cells = [
        Cell(candidate, LEFT_OUT) if candidate.key in without else make(candidate, setting)
        for candidate in CANDIDATES
    ]
    return cells, time_cells(setting.model.name, setting.batch, cells, rounds, seconds)


def make(candidate: Candidate, setting: Setting, kept: KeptCells | None = None) -> Cell:
    say(f"{setting.model.name} batch {setting.batch}: making {candidate.key}")
    return kept.make(candidate, setting) if kept else prepare(candidate, setting)


def time_cells(name: str, batch: int, cells: list[Cell], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time the candidates of a model at a batch size, turn about; returns the rows of the results."""
    workers = {cell.candidate.key: cell.worker for cell in cells if cell.worker}
    try:
        results = turns(workers, rounds, seconds)
    except (
        EngineError
    ) as error:  # a process died: the other models and batch sizes are worth having all the same
        results = {}
        for cell in cells:
            cell.fail(f"the timing failed: {error}")
    rows = []
    for cell in cells:
        row = {"model": name, "batch": batch} | about(cell.candidate)
        row |= {"skipped": cell.skipped, "error" if row["precision"] == "fp32" else "sqnr_db": cell.error}
        if result := results.get(cell.candidate.key):
            row |= latency(result, batch)
            if PLAIN in results:
                row["over_plain"] = gain(results[PLAIN], result)
        rows.append(row)
    return rows


def about(candidate: Candidate) -> dict[str, Any]:
    return {key: getattr(candidate, key) for key in ("key", "title", "precision", "ours")}


def turns(workers: Mapping[str, WorkerSpec], rounds: int, seconds: float) -> dict[str, WorkerResult]:
    if not workers:
        return {}
    say(f"timing {', '.join(workers)}")
    return alternate(workers, TimingOptions(rounds, seconds, WARM_UP_SECONDS))


def over_teachers(
    cells: Mapping[str, list[Cell]], batch: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Time the students and teachers among the models on our engines, all in one go; `cells` by model."""
    pairs = [(name, TEACHERS[name]) for name in cells if TEACHERS.get(name) in cells]
    wanted = {name for pair in pairs for name in pair}
    workers = {
        f"{name} {cell.candidate.key}": cell.worker
        for name in cells
        for cell in cells[name]
        if name in wanted and cell.candidate.ours and cell.worker
    }
    results = turns(workers, rounds, seconds)
    rows = []
    for student, teacher in pairs:
        for candidate in (c for c in CANDIDATES if c.ours):
            fast, slow = (results.get(f"{name} {candidate.key}") for name in (student, teacher))
            if fast and slow:
                row = compared(student, teacher, candidate.title, fast, slow)
                rows.append({**row, "precision": candidate.precision, "batch": batch})
    return rows


def compared(
    student: str, teacher: str, title: str, fast: WorkerResult, slow: WorkerResult
) -> dict[str, Any]:
    """A row of a student and its teacher: the speed-up beside the ratio of their work."""
    work = cost(get_config(teacher)).macs / cost(get_config(student)).macs
    return {
        "student": student,
        "teacher": teacher,
        "title": title,
        "student_p50_ms": fast.stats.p50_ms,
        "teacher_p50_ms": slow.stats.p50_ms,
        "speedup": gain(slow, fast, work),
        "macs_ratio": work,
        "round_medians_ms": [fast.round_medians_ms, slow.round_medians_ms],
    }


def run_all(
    names: list[str],
    batches: list[int],
    without: frozenset[str],
    rounds: int,
    seconds: float,
    threads: int,
    work: Path,
    keep: Path | None = None,
    only_make: bool = False,
    tune_seconds: float = 120,
) -> dict[str, Any]:
    """The comparison of all ways to run the models; `keep` holds what is made, for another run to take up."""
    rows, teachers, told, plans = [], [], {}, {}
    int8 = not {c.key for c in CANDIDATES if c.precision == "int8"} <= without

    @functools.cache
    def model(name: str) -> Model:
        say(f"{name}: exporting and quantizing")
        return make_model(name, threads, int8)

    for batch in batches:
        with tempfile.TemporaryDirectory(prefix="sit-deploy-peers-") as temporary:
            cells = {}
            for name in names:
                folder = (keep or Path(temporary)) / f"{name}-{batch}-{threads}"
                folder.mkdir(parents=True, exist_ok=True)
                kept = KeptCells(folder)
                setting = None
                if kept.lacks(without):
                    setting = Setting(model(name), batch, threads, folder, work, {}, {}, tune_seconds)
                cells[name] = [
                    Cell(candidate, LEFT_OUT)
                    if candidate.key in without
                    else kept.cell(candidate) or make(candidate, setting, kept)
                    for candidate in CANDIDATES
                ]
                kept.recall(told, plans)
                if not only_make:
                    rows += time_cells(name, batch, cells[name], rounds, seconds)
            if not only_make:
                teachers += over_teachers(cells, batch, rounds, seconds)
    why = "there is a GPU: `python benchmarks/gpu.py` times what runs there" if find_gpus().gpus else "no GPU"
    return {
        "cells": rows,
        "over_teachers": teachers,
        "not_run": dict.fromkeys(ON_GPU, why),
        "peers": told,
        "plans": [{"model": name, "batch": batch, "plan": plan} for (name, batch), plan in plans.items()],
    }


def run_pairs(pairs: list[tuple[str, str]], rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """Each student against its teacher on our engines, in FP32 at batch 1; `best` is the quicker engine of each."""
    ours = [c for c in CANDIDATES if c.ours and c.precision == "fp32"]
    rows = []
    for pair in pairs:
        workers: dict[str, WorkerSpec] = {}
        with tempfile.TemporaryDirectory(prefix="sit-deploy-pairs-") as folder:
            for name in pair:
                say(f"{name}: exporting and building")
                model: Model = make_model(name, threads, int8=False)
                for candidate in ours:
                    cell = prepare(candidate, Setting(model, 1, threads, Path(folder), Path(folder)))
                    if cell.worker is None:
                        raise click.ClickException(f"{name} on {candidate.key}: {cell.skipped}")
                    workers[f"{name} {candidate.key}"] = cell.worker
                del model
            results = turns(workers, rounds, seconds)
        student, teacher = pair
        best = {
            name: min((results[f"{name} {c.key}"] for c in ours), key=lambda result: result.stats.p50_ms)
            for name in pair
        }
        found = [
            compared(student, teacher, c.title, results[f"{student} {c.key}"], results[f"{teacher} {c.key}"])
            for c in ours
        ]
        found.append(compared(student, teacher, "quicker engine of each", best[student], best[teacher]))
        rows += [{**row, "aim": AIMS.get(student)} for row in found]
    return {"pairs": rows}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def asked() -> str:
    """The command line of this run, without what does not change the figures."""
    context = click.get_current_context()
    words = ["python benchmarks/runtime_peers.py"]
    for option in context.command.params:
        value = context.params.get(option.name)
        if option.name in NO_FIGURES or value == option.get_default(context):
            continue
        words += [option.opts[0]] if value == PAIRS else [option.opts[0], str(value)]
    return " ".join(words)


def say(text: str) -> None:
    """Tell what is being done, with the time, as a run takes many minutes."""
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def split(text: str, option: str) -> list[str]:
    """Words between commas, each once."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise click.BadParameter(f"{option} names nothing")
    return words


def known(names: list[str]) -> list[str]:
    """The same names; refuses those whose work is not known, timm's own among them."""
    for name in names:
        try:
            cost(get_config(name))
        except InputError as error:
            raise click.BadParameter(str(error)) from None
    return names


def parse_pairs(text: str) -> list[tuple[str, str]]:
    found = []
    for word in split(text, "--pairs"):
        student, slash, teacher = word.partition("/")
        if not slash or not student or not teacher:
            raise click.BadParameter(f"--pairs takes STUDENT/TEACHER,..., got {word!r}")
        known([student, teacher])
        found.append((student, teacher))
    return found


def parse_batches(text: str) -> list[int]:
    words = split(text, "--batches")
    if bad := [w for w in words if not w.isdecimal() or int(w) < 1]:
        raise click.BadParameter(f"--batches takes numbers from 1, got {bad[0]!r}")
    return [int(word) for word in words]


def parse_without(text: str) -> frozenset[str]:
    keys = [candidate.key for candidate in CANDIDATES]
    asked = frozenset(word.strip() for word in text.split(",") if word.strip())
    if bad := sorted(asked.difference(keys)):
        raise click.BadParameter(f"--without has {bad[0]!r}; choose from {', '.join(keys)}")
    return asked


@click.command(help=__doc__.splitlines()[0])
@click.option("--models", default=MODELS, show_default=True, help="Names, separated by commas.")
@click.option("--batches", default="1,8", show_default=True)
@click.option(
    "--pairs",
    is_flag=False,
    flag_value=PAIRS,
    default=None,
    help=f"Time only students against teachers: STUDENT/TEACHER,...  [without a value: {PAIRS}]",
)
@click.option("--without", default="", help="Candidates to leave out, by their keys in the results.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=0.4,
    show_default=True,
    help="Length of a turn; of three calls where that is longer.",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--tune-seconds", default=120.0, show_default=True, help="Of each build with `--quantize auto`."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "peers",
    help="Folder of the peers' environments.  [default: build/peers]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder of what is made, for a later run to take up: only the timing wants a quiet machine.",
)
@click.option(
    "--only-make", is_flag=True, help="Make and compare what is to be timed, and stop; with --keep."
)
@click.option("--output", type=click.Path(path_type=Path), default=None, help="File for the results.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON in place of tables.")
@click.option("--write-docs", is_flag=True, help="Put tables and picture into docs/benchmarks.md.")
def main(
    models: str,
    batches: str,
    pairs: str | None,
    without: str,
    rounds: int,
    seconds: float,
    threads: int,
    tune_seconds: float,
    work: Path,
    keep: Path | None,
    only_make: bool,
    output: Path | None,
    as_json: bool,
    write_docs: bool,
) -> None:
    names, sizes, left_out = known(split(models, "--models")), parse_batches(batches), parse_without(without)
    couples = parse_pairs(pairs) if pairs is not None else []
    if only_make and (keep is None or couples):
        raise click.BadParameter("--only-make wants --keep FOLDER, and not --pairs")
    before, started = os.getloadavg()[0], time.perf_counter()
    found = (
        run_pairs(couples, rounds, seconds, threads)
        if couples
        else run_all(
            names,
            sizes,
            left_out,
            rounds,
            seconds,
            threads,
            work.absolute(),
            keep and keep.absolute(),
            only_make,
            tune_seconds,
        )
    )
    if only_make:
        return
    result = {
        "command": asked(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": asdict(machine()),
        "gpus": [gpu.name for gpu in find_gpus().gpus],
        "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
        "versions": {"python": sys.version.split()[0], **{p: installed(p) for p in PACKAGES}},
        "threads": threads,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "seconds": round(time.perf_counter() - started, 1),
        "engines": ENGINES,
        **found,
    }
    path = output or ROOT / "benchmarks" / "results" / (
        "runtime_pairs.json" if couples else "runtime_peers.json"
    )
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    click.echo(json.dumps(result, indent=1) if as_json else page.markdown(result))
    say(f"written to {path}")
    if write_docs:
        page.write(result)


if __name__ == "__main__":
    main()
