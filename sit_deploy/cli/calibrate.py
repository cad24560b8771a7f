"""The command `sit-deploy calibrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Groups,
    Real,
    Whole,
    console,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress_of_first,
    quiet_option,
    say,
    say_note,
    table,
)
from sit_deploy.cli.options import (
    damaged_option,
    key_option,
    method_option,
    model_options,
    outputs_option,
    preprocessing_options,
    pretrained_option,
)

if TYPE_CHECKING:
    from sit_deploy.pipeline.calibration import CalibrationResult


@click.command(
    "calibrate",
    epilog=examples(
        "sit-deploy calibrate --checkpoint s.safetensors --calib-data train -o s.json",
        "sit-deploy calibrate --checkpoint s.safetensors --calib-data train --calib-images 512 -o s.json",
        "sit-deploy calibrate --checkpoint s.safetensors --calib-data train --quantize auto -o s.json",
    ),
)
@model_options(required=False)
@method_option
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="Weights, or hf-hub:OWNER/NAME; random ones without it.",
)
@pretrained_option
@key_option
@click.option(
    "--no-ema", is_flag=True, help="Take the plain weights where the checkpoint has averaged ones too."
)
@click.option("--image-size", type=Whole(limits.PIXELS), metavar="N", help="Pixels of the square input.")
@click.option("--num-classes", type=Whole(limits.CLASSES), metavar="N", help="Classes of the head.")
@outputs_option
@click.option(
    "--opset",
    default=20,
    show_default=True,
    type=Whole(100),
    metavar="17..20|23",
    help="As of the build.",
)
@click.option(
    "--precision", default="int8", show_default=True, metavar="int8|fp8", help="Codes to calibrate for."
)
@click.option(
    "--calib-data", required=True, type=path_type, metavar="DIR", help="Folder of images like those to come."
)
@click.option(
    "--calib-images", type=Whole(limits.STREAMED), metavar="N", help="How many of them.  [default: up to 256]"
)
@damaged_option
@click.option(
    "--calib-method",
    default="auto",
    show_default=True,
    metavar="M",
    help="minmax, average, percentile, entropy (int8), mse; auto takes the one that hurts the logits least.",
)
@click.option(
    "--calib-percentile",
    default=99.99,
    show_default=True,
    type=Real(most=100),
    metavar="P",
    help="Of the method percentile.",
)
@click.option(
    "--quantize",
    type=Groups(),
    metavar="GROUPS",
    help="As of the build: products of two activations are observed if they are in it; auto observes everything.  [default: default]",
)
@preprocessing_options
@click.option("-o", "--output", type=path_type, required=True, metavar="FILE", help="The calibration, JSON.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@quiet_option
@json_option
def command(no_ema: bool, as_json: bool, **options: Any) -> None:
    """Observe the ranges of a model's activations on images, in constant memory, and write them down.

    The file is keyed to the graph, the images and their preprocessing; `build --calib-cache` refuses it for any other.
    Started by torchrun (torchrun --nproc-per-node 8 -m sit_deploy calibrate ...), every process takes a share of the
    images, and the result is the same to the last digit.
    """
    from sit_deploy.pipeline.calibration import calibrate
    from sit_deploy.pipeline.request import BuildRequest

    request = BuildRequest(ema=not no_ema, **options)
    with progress_of_first() as report:
        result = calibrate(request, report)
    if result.main and as_json:
        emit_json(result.to_dict())
    elif result.main:
        _show(result)


def _show(result: CalibrationResult) -> None:
    screen = console()
    for note in result.notes:
        say_note(screen, note)
    calibration = result.calibration
    methods = list(next(iter(calibration.tensors.values())).thresholds)
    listing = table("tensor", "smallest", "largest", *methods, right=("smallest", "largest", *methods))
    for name, seen in calibration.tensors.items():
        figures = (seen.min, seen.max, *(seen.thresholds[method] for method in methods))
        listing.add_row(literal(name), *(f"{figure:.3g}" for figure in figures))
    screen.print(listing)
    say(
        screen,
        f"[green]✓[/] [bold]{literal(result.output)}[/]: {len(calibration.tensors)} tensors on {literal(calibration.images.description)}, "
        f"method {calibration.method}",
    )
