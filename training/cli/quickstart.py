"""The command `sit-deploy quickstart`."""

from __future__ import annotations

from pathlib import Path

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Whole,
    console,
    emit_json,
    examples,
    file_size,
    json_option,
    literal,
    path_type,
    progress,
    say,
    table,
)


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
@json_option
def command(output: Path, seed: int, as_json: bool) -> None:
    """Train a small teacher on handwritten digits, distil a SiT from it, build its FP16 engine, and compare them.

    Minutes on two CPU cores; nothing is downloaded. Started again, it goes on where it was interrupted.
    """
    from training.cli.terminal_reporter import reporting
    from training.quickstart import quickstart

    with reporting() as reporter, progress() as report:
        result = quickstart(output, seed, reporter, report)
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
    say(
        screen,
        f"[green]✓[/] [bold]{literal(result.bundle)}[/] in {result.seconds:.0f} s. Next: "
        f"sit-deploy bench {literal(result.bundle)} --engine onnxruntime",
    )
