"""sit-deploy validate"""

from __future__ import annotations

from pathlib import Path

import click

from sit_deploy.cli.common import console, emit_json, examples, json_option, path_type, progress
from sit_deploy.errors import InputError


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
@json_option
def command(
    bundle: Path,
    data: Path | None,
    engine: str | None,
    max_accuracy_drop: float | None,
    min_agreement: float | None,
    checkpoint: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check a bundle on this machine: hashes, golden outputs and, given labelled images, accuracy.

    Exit status 1 if the golden outputs are out of tolerance or a limit is not kept.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.cli.build import accuracy_table, show_hops
    from sit_deploy.inference import load
    from sit_deploy.parity import require
    from sit_deploy.validate import check_accuracy, check_golden

    if data is None and (max_accuracy_drop is not None or min_agreement is not None):
        raise InputError("--max-accuracy-drop and --min-agreement need images with labels; pass --data DIR")
    opened = load_bundle(bundle)
    kind = engine or opened.manifest["engine"]["kind"]
    with progress() as report, load(opened, engine, threads=threads) as classifier:
        hop = check_golden(opened, classifier)
        accuracy = check_accuracy(opened, classifier, data, checkpoint, report) if data else None
    measured = {**accuracy.to_dict(), "measured_on": kind, "data": str(data)} if accuracy else None
    if as_json:
        emit_json({"bundle": str(bundle), "engine": kind, "golden": hop.to_dict(), "accuracy": measured})
    else:
        screen = console()
        show_hops(screen, [hop.to_dict()], f"{bundle} on {kind}")
        if measured:
            screen.print(accuracy_table(measured))
    require([hop], "do not use this engine here")
    if accuracy:
        accuracy.require(max_accuracy_drop, min_agreement)
