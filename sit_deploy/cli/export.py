"""sit-deploy export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sit_deploy.cli.common import (
    DynamicBatch,
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress,
    say,
)


@click.command(
    "export",
    epilog=examples(
        "sit-deploy export --model sit_s",
        "sit-deploy export --model sit_s --checkpoint sit_s.pth --opset 17 --dynamic-batch 1:8:32 -o sit_s.onnx",
    ),
)
@click.option("--model", required=True, metavar="NAME", help="Model name; `sit-deploy models` lists them.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="fp32|fp16|bf16",
    help="Types written into the graph.",
)
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="Weights, .pth or .safetensors; random ones without it.",
)
@click.option(
    "--no-ema", is_flag=True, help="Take the plain weights where the checkpoint has averaged ones too."
)
@click.option("--batch-size", default=1, show_default=True, type=int, metavar="N", help="Images a run.")
@click.option("--dynamic-batch", type=DynamicBatch(), help="Leave the batch dimension open.")
@click.option("--image-size", type=int, metavar="N", help="Pixels of the square input, divisible by 16.")
@click.option(
    "--num-classes", type=int, metavar="N", help="Classes of the head; read from the checkpoint by default."
)
@click.option(
    "--calib-data", type=path_type, metavar="DIR", help="Images for the comparisons and FP16 ranges."
)
@click.option("--calib-images", default=8, show_default=True, type=int, metavar="N", help="How many of them.")
@click.option(
    "--opset",
    default=20,
    show_default=True,
    type=click.IntRange(17, 20),
    metavar="17..20",
    help="17 is the most TensorRT 8.6 reads.",
)
@click.option("-o", "--output", type=path_type, metavar="FILE", help="The .onnx file.  [default: MODEL.onnx]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def command(model: str, output: Path | None, no_ema: bool, as_json: bool, **options: Any) -> None:
    """Write the ONNX graph alone: static, standard operators, linted and compared with PyTorch."""
    from sit_deploy.build import export
    from sit_deploy.cli.build import show_graph
    from sit_deploy.request import BuildRequest

    request = BuildRequest(model=model, output=output or Path(f"{model}.onnx"), ema=not no_ema, **options)
    with progress() as report:
        result = export(request, report)
    if as_json:
        emit_json({"model": str(request.output.absolute()), **result})
        return
    screen = console()
    show_graph(screen, result)
    say(screen, f"[green]✓[/] [bold]{literal(request.output)}[/]")
