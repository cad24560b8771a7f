"""The command `sit-deploy export`."""

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
    quiet_option,
    say,
)
from sit_deploy.cli.options import graph_options


@click.command(
    "export",
    epilog=examples(
        "sit-deploy export --model sit_s",
        "sit-deploy export --model sit_s --checkpoint sit_s.pth --opset 17 --dynamic-batch 1:8:32 -o sit_s.onnx",
    ),
)
@graph_options
@click.option("-o", "--output", type=path_type, metavar="FILE", help="The .onnx file.  [default: MODEL.onnx]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@quiet_option
@json_option
def command(output: Path | None, no_ema: bool, as_json: bool, **options: Any) -> None:
    """Write the ONNX graph alone: static, standard operators, linted and compared with PyTorch."""
    from sit_deploy.cli.build import show_graph
    from sit_deploy.pipeline.build import export, ready_to_export
    from sit_deploy.pipeline.request import BuildRequest

    with progress() as report:
        request = ready_to_export(BuildRequest(output=output, ema=not no_ema, **options), report)
        result = export(request, report)
    if as_json:
        emit_json({"model": str(request.output.absolute()), **result.to_dict()})
        return
    screen = console()
    show_graph(screen, result)
    say(screen, f"[green]✓[/] [bold]{literal(request.output)}[/]")
