"""sit-deploy validate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import ON_CPU
from sit_deploy.cli.common import (
    console,
    device_option,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    say,
    table,
)
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from engines.layerwise import LayerComparison

_SHOWN = 15  # layers, the slowest or the worst; --json has all


@click.command(
    "validate",
    epilog=examples(
        "sit-deploy validate sit_s-fp32",
        "sit-deploy validate sit_s-fp32 --data imagenet/val --max-accuracy-drop 0.5 --min-agreement 98",
    ),
)
@click.argument("bundle", type=path_type)
@click.option(
    "--data", type=path_type, metavar="DIR", help="Folder with one subfolder a class: measures accuracy."
)
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option(
    "--max-accuracy-drop", type=click.FloatRange(min=0), metavar="PTS", help="Fail if top-1 falls by more."
)
@click.option(
    "--min-agreement", type=click.FloatRange(0, 100), metavar="PCT", help="Fail if fewer images agree."
)
@click.option(
    "--checkpoint", type=path_type, metavar="FILE", help="The weights, if they moved since the build."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of the engine.")
@device_option
@click.option(
    "--layers", is_flag=True, help="Types and time of each layer, as the engine tells them (TensorRT)."
)
@click.option(
    "--debug",
    is_flag=True,
    help="Compare TensorRT with ONNX Runtime tensor by tensor: which is the first bad one?",
)
@json_option
def command(
    bundle: Path,
    data: Path | None,
    engine: str | None,
    max_accuracy_drop: float | None,
    min_agreement: float | None,
    checkpoint: Path | None,
    threads: int | None,
    device: str | None,
    layers: bool,
    debug: bool,
    as_json: bool,
) -> None:
    """Check a bundle on this machine: hashes, golden outputs and, given labelled images, accuracy.

    Exit status 1 if the golden outputs are out of tolerance or a limit is not kept.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.cli.build import accuracy_table, show_hops
    from sit_deploy.inference import load
    from sit_deploy.parity import require
    from sit_deploy.validate import check_accuracy, check_golden, check_layers, compare_layers

    if data is None and (max_accuracy_drop is not None or min_agreement is not None):
        raise InputError("--max-accuracy-drop and --min-agreement need images with labels; pass --data DIR")
    opened = load_bundle(bundle)
    kind = engine or opened.manifest["engine"]["kind"]
    if layers and kind in ON_CPU:
        raise InputError("--layers is for TensorRT engines; for the graph see `sit-deploy inspect`")
    compared = compare_layers(opened) if debug else None
    with progress() as report, load(opened, engine, threads=threads, device=device) as classifier:
        hop = check_golden(opened, classifier)
        accuracy = check_accuracy(opened, classifier, data, checkpoint, report) if data else None
        # last: a context that was profiled stays slow
        told = check_layers(opened.model_path, classifier, opened.golden()[0]) if layers else None
    measured = {**accuracy.to_dict(), "measured_on": kind, "data": str(data)} if accuracy else None
    if as_json:
        emit_json(
            {
                "bundle": str(bundle),
                "engine": kind,
                "golden": hop.to_dict(),
                "accuracy": measured,
                "layers": told,
                "debug": compared.to_dict() if compared else None,
            }
        )
    else:
        screen = console()
        show_hops(screen, [hop.to_dict()], f"{bundle} on {kind}")
        if measured:
            screen.print(accuracy_table(measured))
        if told:
            _show_layers(screen, told)
        if compared:
            _show_debug(screen, compared)
    require([hop], "do not use this engine here")
    if accuracy:
        accuracy.require(max_accuracy_drop, min_agreement)


def _show_layers(screen: Console, told: dict[str, Any]) -> None:
    listing = table("layer", "types", "ms", "share", right=("ms", "share"), fold=("layer",))
    for row in told["layers"][:_SHOWN]:
        ms = "" if row["ms"] is None else f"{row['ms']:.4f}"
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        listing.add_row(literal(row["layer"]), ", ".join(row["types"]), ms, share)
    screen.print(listing)
    say(
        screen,
        f"{len(told['kept'])} low-precision products run in the types of the graph, {len(told['raised'])} do not, of "
        f"{len(told['untold'])} the engine does not tell.",
    )
    for node in told["raised"]:
        say(screen, f"[yellow]not in the type of the graph:[/] {literal(node)}")


def _show_debug(screen: Console, compared: LayerComparison) -> None:
    listing = table(
        "tensor", "operator", "error", "SQNR dB", "", right=("error", "SQNR dB"), fold=("tensor",)
    )
    for row in compared.worst(_SHOWN):
        error = "not finite" if row.error is None else f"{row.error:.1e}"
        sqnr = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        state = "[green]ok[/]" if row.passed else "[red]out of tolerance[/]"
        listing.add_row(literal(row.tensor), row.operator, error, sqnr, state)
    screen.print(listing)
    first = compared.first_bad
    if first:
        say(
            screen,
            f"[red]first bad layer:[/] {literal(first.node)} ({first.operator}), tensor {literal(first.tensor)}",
        )
    else:
        say(screen, f"[green]✓[/] {len(compared.tensors)} tensors, all within {compared.tolerance:g}")
