"""sit-deploy bench"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sit_deploy.cli.common import (
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    say,
    table,
)


@click.command(
    "bench",
    epilog=examples(
        "sit-deploy bench sit_s-fp32", "sit-deploy bench sit_s-fp16 --engine onnxruntime --threads 2 --json"
    ),
)
@click.argument("bundle", type=path_type)
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images a run, for an engine that takes several.",
)
@click.option(
    "--rounds",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Turns of each side.",
)
@click.option(
    "--seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Length of a turn.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of both sides.")
@click.option(
    "--checkpoint", type=path_type, metavar="FILE", help="The weights, if they moved since the build."
)
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Time a bundle's engine against PyTorch eager.

    The two run turn about, each in a process of its own; the speed-up is the median of the rounds' ratios.
    """
    from sit_deploy.bench import bench
    from sit_deploy.bundle import load_bundle

    opened = load_bundle(bundle)
    with progress() as report:
        # the two sides take turns: one bar of all turns says more than one for each
        result = bench(opened, **options, progress=lambda _, done, total: report("Timing", done, total))
    if as_json:
        emit_json(result)
        return
    columns = ("p50 ms", "p90 ms", "p99 ms", "images/s", "runs")
    title = f"{result['model']} {result['precision']}, batch {result['batch_size']}"
    listing = table("", *columns, title=title, right=columns)
    for name, found in result["results"].items():
        stats = found["stats"]
        figures = (f"{stats[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        listing.add_row(name, *figures, f"{stats['images_per_second']:.1f}", str(stats["iterations"]))
    screen = console()
    screen.print(listing)
    speedup, machine = result["speedup"], result["machine"]
    low, high = min(speedup["per_round"]), max(speedup["per_round"])
    say(
        screen,
        f"{speedup['engine']} is [bold]{speedup['median']:.2f}×[/] as fast as PyTorch eager "
        f"(rounds {low:.2f} to {high:.2f}) on {literal(machine['cpu_model'])}, {machine['usable_cpus']} CPUs.",
    )
    if (machine["load_average"] or 0) > machine["usable_cpus"] + 0.5:
        say(screen, "[yellow]Other programs are using this machine: take the figures with care.[/]")
