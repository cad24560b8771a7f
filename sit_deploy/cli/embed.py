"""The command `sit-deploy embed`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    OutputNames,
    Whole,
    console,
    device_option,
    emit_json,
    examples,
    file_size,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
    say_note,
)
from sit_deploy.cli.options import damaged_option


@click.command(
    "embed",
    epilog=examples(
        "sit-deploy embed dinov2-fp16 photos/ -o features.npz",
        "sit-deploy embed dinov2-fp16 cat.jpg dog.jpg --outputs features -o features.npy --json",
    ),
)
@click.argument("bundle", type=path_type)
@click.argument("images", type=path_type, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=path_type,
    required=True,
    metavar="FILE",
    help="features.npz: paths and outputs; features.npy: one output alone.",
)
@click.option("--outputs", type=OutputNames(), help="Which to write; all that the bundle gives by default.")
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option("--threads", type=Whole(limits.THREADS, 1), metavar="N", help="CPU threads.")
@device_option
@damaged_option
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@quiet_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Write what a bundle gives for image files, or all images below folders: features, tokens, logits.

    The .npz file has paths, and each output under its name, float32: features (n, dim), cls (n, dim), patches (n, patches,
    dim), logits (n, classes). Row i of each is of image i of paths. Nothing is held in memory but a few batches; what would
    not fit on the disk is refused before any work. Images that cannot be read are left out and named; too many of them end it with
    nothing written.
    """
    from sit_deploy.data.damaged import left_out_words
    from sit_deploy.embeddings import EmbedRequest, embed

    with progress() as report:
        result = embed(EmbedRequest(**options), report, partial(say_note, console(stderr=True)))
    if as_json:
        emit_json(result.to_dict())
        return
    arrays = ", ".join(f"{name} {shape}" for name, shape in result.outputs.items())
    say(
        console(),
        f"[green]✓[/] [bold]{literal(result.file)}[/]: {arrays}; {file_size(result.to_dict()['bytes'])}, {result.images} "
        f"image{'s' * (result.images != 1)} in {result.seconds:.1f} s",
    )
    if left_out := left_out_words(result.damaged):
        say(console(), f"[yellow]{literal(left_out)}[/]")
    if result.paths is not None:
        say(console(), "Rows are in the order of the images as they were found; --json lists them.")
