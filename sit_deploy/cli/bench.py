"""The command `sit-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Counts,
    Cpus,
    Real,
    Whole,
    console,
    device_option,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
    table,
)
from sit_deploy.cli.options import performance_options
from sit_deploy.errors import InputError
from sit_deploy.report.speedup_text import sentence

if TYPE_CHECKING:
    from engines.speedup import Speedup
    from sit_deploy.validation.bench import BenchResult

_REMEDY = "close other programs, pin both with --cpus, give fewer --threads than CPUs, or more --rounds"


@click.command(
    "bench",
    epilog=examples(
        "sit-deploy bench sit_s-fp32",
        "sit-deploy bench sit_s-fp16 --batch-sizes 1,8,32 --teacher lvvit_s-fp16",
        "sit-deploy bench sit_s-fp32 --batch-sizes 1,2,4,8 --threads 4 --cpus 0-3 --csv sweep.csv",
        "sit-deploy bench sit_s-fp16 --engine onnxruntime --threads 2 --json",
        "sit-deploy bench sit_s-int8 --performance throughput --batch-sizes 1,8",
    ),
)
@click.argument("bundle", type=path_type)
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option(
    "--batch-size",
    type=Whole(limits.BATCH, 1),
    metavar="N",
    help="Images a run, for an engine that takes several.",
)
@click.option(
    "--rounds",
    default=10,
    show_default=True,
    type=Whole(limits.ROUNDS, 1),
    metavar="N",
    help="Turns of each side.",
)
@click.option(
    "--seconds",
    default=1.0,
    show_default=True,
    type=Real(0, limits.SECONDS, above=True),
    metavar="S",
    help="Length of a turn.",
)
@click.option(
    "--threads",
    type=Whole(limits.THREADS, 1),
    metavar="N",
    help="CPU threads of both sides.  [default: those that the bundle was built for]",
)
@performance_options
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="The weights, or hf-hub:OWNER/NAME, if they moved since the build.",
)
@device_option
@click.option(
    "--batch-sizes",
    type=Counts("batch sizes", "1,8,32", limits.BATCH),
    metavar="N,N,...",
    help="Time several batch sizes, one after another.",
)
@click.option(
    "--teacher", type=path_type, metavar="BUNDLE", help="Time the teacher's engine too: realised speed-up."
)
@click.option("--cpus", type=Cpus(), help="Pin every side to these CPUs.")
@click.option(
    "--csv",
    "csv_path",
    type=path_type,
    metavar="FILE.csv",
    help="Write the figures as CSV too, and their plot beside it as FILE.png.",
)
@click.option("--force", is_flag=True, help="Replace a CSV and a plot that are there.")
@quiet_option
@json_option
def command(
    bundle: Path,
    batch_size: int | None,
    batch_sizes: tuple[int, ...] | None,
    teacher: Path | None,
    csv_path: Path | None,
    force: bool,
    as_json: bool,
    engine: str | None,
    checkpoint: Path | None,
    performance: str,
    streams: int | None,
    **timing: Any,
) -> None:
    """Time a bundle's engine against PyTorch eager.

    The two run turn about, each in a process of its own; the speed-up is the median of the rounds' ratios, with its
    quartiles. Where the rounds do not bear one out (other programs had the CPUs, the rounds lie far apart or on both sides
    of 1), it says so instead. With --performance throughput the engine runs several batches at a time, and is held against
    itself with one at a time too; ms are then a batch's share of the time. On a GPU there are two times: end to end with transfers, and the GPU's own without them.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.validation.bench import bench, require_batch

    if batch_size and batch_sizes:
        raise InputError("--batch-size and --batch-sizes exclude each other; pass one of them")
    if csv_path:
        _check_csv(csv_path, force)
    opened = load_bundle(bundle)
    against = load_bundle(teacher) if teacher else None
    for size in batch_sizes or ():  # all before the first is timed
        for each in filter(None, (opened, against)):
            require_batch(each, size)
    others = {
        "engine": engine,
        "checkpoint": checkpoint,
        "performance": performance,
        "streams": streams,
        "teacher": against,
        **timing,
    }
    results = []
    with progress() as report:
        for size in batch_sizes or (batch_size,):
            text = f"Timing batch {size}" if batch_sizes else "Timing"

            # the sides take turns: one bar of all turns says more than one for each
            def show(_: str, done: int, total: int, text: str = text) -> None:
                report(text, done, total)

            results.append(bench(opened, batch_size=size, **others, progress=show))
    if csv_path:
        _write_csv(csv_path, results)
    if as_json:
        as_dicts = [result.to_dict() for result in results]
        emit_json({"sweep": as_dicts} if batch_sizes else as_dicts[0])
        return
    for result in results:
        _show(result)
    if csv_path:
        say(
            console(),
            f"[green]✓[/] [bold]{literal(csv_path)}[/], {literal(csv_path.with_suffix('.png').name)}",
        )


def _check_csv(path: Path, force: bool) -> None:
    if path.suffix.lower() != ".csv":
        raise InputError(f"--csv {path} must end in .csv; pass for example --csv sweep.csv")
    if not path.absolute().parent.is_dir():
        raise InputError(f"folder {path.absolute().parent} does not exist; choose another --csv")
    if there := [p for p in (path, path.with_suffix(".png")) if p.exists() and not force]:
        raise InputError(f"{there[0]} exists; pass --force to replace it, or choose another --csv")


def _write_csv(path: Path, results: list[BenchResult]) -> None:
    """Write the rows and draw them: both files beside their places first, and moved there whole."""
    import csv

    from sit_deploy.files import scratch
    from sit_deploy.validation.bench_csv import CSV_COLUMNS, csv_rows, plot_csv

    with scratch(path) as folder:
        rows, picture = folder / path.name, folder / path.with_suffix(".png").name
        with rows.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(csv_rows(results))
        plot_csv(rows, picture)
        picture.replace(path.with_suffix(".png"))
        rows.replace(path)


def _show(result: BenchResult) -> None:
    columns = ("p50 ms", "p90 ms", "p99 ms", "images/s", "runs")
    title = f"{result.model} {result.precision}, batch {result.batch_size}"
    listing = table("", *columns, title=literal(title), right=columns)
    for name, timed in result.results.items():
        for suffix, stats in (("", timed.stats), (", GPU time", timed.gpu)):
            if stats is None:
                continue
            figures = (f"{ms:.2f}" for ms in (stats.p50_ms, stats.p90_ms, stats.p99_ms))
            listing.add_row(name + suffix, *figures, f"{stats.images_per_second:.1f}", str(stats.iterations))
    screen = console()
    screen.print(listing)
    gpu = result.gpu_after if result.torch_device != "cpu" else None
    where = gpu["name"] if gpu else f"{result.machine.cpu_model}, {result.machine.usable_cpus} CPUs"
    kind = "eager" if result.torch_dtype == "float32" else f"eager in {result.torch_dtype}"
    line = _speed(result.side, f"PyTorch {kind}", result.speedup, result.gpu_speedup)
    say(screen, f"{line} On {literal(where)}.")
    if result.over_latency:
        many = result.results[result.side].in_flight
        say(screen, _speed(f"{result.side} ({many} at a time)", "one at a time", result.over_latency, None))
        stats = result.results[result.side].stats
        say(
            screen,
            f"So many at a time, a batch takes about {many * stats.p50_ms:.1f} ms from beginning to end.",
        )
    over = result.over_teacher
    if over:
        line = _speed(result.side, f"its teacher {over.model}", over.speedup, over.gpu)
        say(screen, f"{line} The teacher has {over.macs_ratio:.2f}× the MACs.")
    if gpu:
        say(
            screen,
            f"GPU after the runs: {gpu['clocks_sm']} of {gpu['clocks_max_sm']} MHz, {gpu['power_draw']} of "
            f"{gpu['power_limit']} W, {gpu['temperature_gpu']} °C.",
        )
    for note in result.notes:
        say(screen, f"Note: {literal(note)}.")
    around = result.around
    classes = "" if around.classes_ms is None else f", classes {around.classes_ms:.2f} ms"
    where = f"pinned to CPU {', '.join(map(str, result.cpus))}" if result.cpus else "pinned to no CPU"
    say(
        screen,
        f"Around the engine, an image ({around.image}) on one thread: decoding {around.decode_ms:.2f} ms, preparing "
        f"{around.prepare_ms:.2f} ms{classes}. Both sides {where}.",
    )


def _speed(engine: str, other: str, speedup: Speedup, by_gpu: float | None) -> str:
    """Return a line on a speed-up, by both clocks; yellow where the rounds do not bear one out."""
    text = sentence(engine, other, speedup, _REMEDY)
    line = literal(text[0].upper() + text[1:] if speedup.doubt else text)
    alone = f"; {by_gpu:.2f}× by GPU time" if by_gpu else ""
    return f"[yellow]{line}[/]{alone}." if speedup.doubt else f"[bold]{line}[/]{alone}."
