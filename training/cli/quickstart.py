"""The command `sit-deploy quickstart`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sit_deploy import limits
from sit_deploy.advice import NewWeights, NextCommand, next_builds
from sit_deploy.cli.common import (
    Whole,
    console,
    display,
    emit_json,
    examples,
    file_size,
    json_option,
    literal,
    path_type,
    quiet_option,
    say,
    say_next,
    table,
)
from training.progress import duration


@click.command(
    "quickstart", epilog=examples("sit-deploy quickstart", "sit-deploy quickstart -o try --seed 1")
)
@click.option(
    "-o",
    "--output",
    type=path_type,
    default=Path("quickstart"),
    show_default=True,
    metavar="DIR",
    help="Folder for all of it.",
)
@click.option(
    "--seed",
    type=Whole(limits.SEED, 0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of all random numbers.",
)
@quiet_option
@json_option
def command(output: Path, seed: int, as_json: bool) -> None:
    """Train a small teacher on handwritten digits, distil a SiT from it, build its FP16 engine, and compare them.

    Minutes on two CPU cores; nothing is downloaded. Started again, it goes on where it was interrupted.
    """
    from training.quickstart import quickstart
    from training.terminal_reporter import TerminalReporter

    with display() as shown:
        result = quickstart(output, seed, TerminalReporter(shown), shown.step)
    if as_json:
        emit_json(result.to_dict())
        return
    screen = console()
    right = ("top-1 %", "agrees with teacher %", "MMACs", "size")
    listing = table("", "model", *right, title=f"On {result.images} held-out digits", right=right)
    for entry in result.entries:
        listing.add_row(
            entry.what, entry.model, f"{entry.top1:.2f}", f"{entry.agreement:.2f}", f"{entry.macs / 1e6:.1f}",
            file_size(entry.size),
        )  # fmt: skip
    screen.print(listing)
    curves = " and ".join(map(str, result.curves))
    say(screen, f"Curves: {literal(curves)}")
    say(screen, f"[green]✓[/] [bold]{literal(result.bundle)}[/] in {duration(result.seconds)}")
    bench = [
        "sit-deploy",
        "bench",
        str(result.bundle),
        *(() if _runs_here(result.bundle) else ("--engine", "onnxruntime")),
    ]
    compare = NextCommand("time it against PyTorch", shlex.join(bench))
    digits = output / "digits"
    student = NewWeights(
        output / "student" / "model.safetensors", False, digits / "calibration", digits / "val"
    )
    say_next(screen, (compare, *next_builds(student)))


def _runs_here(path: Path) -> bool:
    """Whether the engine of a bundle runs on this machine; else its graph does."""
    import engines
    from sit_deploy.bundle import load_bundle

    return engines.get(load_bundle(path).manifest.engine.kind).probe().can_run
