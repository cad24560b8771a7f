"""The command `sit-deploy search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines import KINDS
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
    progress,
    quiet_option,
    show_search,
)
from sit_deploy.cli.options import (
    damaged_option,
    key_option,
    preprocessing_options,
    pretrained_option,
    val_options,
)

if TYPE_CHECKING:
    from sit_deploy.report.search_record import SearchRecord


@click.command(
    "search",
    epilog=examples(
        "sit-deploy search --checkpoint teacher.safetensors --latency 5 --data val -o found",
        "sit-deploy search --model lvvit_s --checkpoint lvvit_s.pth --speedup 1.7 --data photos -o found",
        "sit-deploy search --model deit_small_patch16_224 --pretrained --precision auto --latency 8 --data val -o d",
    ),
)
@click.option(
    "--model",
    metavar="NAME",
    help="The unslimmed model: one of `sit-deploy models`, or a vision transformer of timm, hf-hub:OWNER/NAME, local-dir:PATH. A "
    "checkpoint with a model card or a config.json names it itself.",
)
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="Its weights, or hf-hub:OWNER/NAME; random ones without it.",
)
@pretrained_option
@key_option
@click.option(
    "--no-ema", is_flag=True, help="Take the plain weights where the checkpoint has averaged ones too."
)
@click.option("--image-size", type=Whole(limits.PIXELS), metavar="N", help="Pixels of the square input.")
@click.option("--num-classes", type=Whole(limits.CLASSES), metavar="N", help="Classes of the head.")
@click.option("--latency", type=Real(), metavar="MS", help="Milliseconds a batch that the engine is to keep.")
@click.option(
    "--speedup",
    type=Real(),
    metavar="X",
    help="In its place: times as fast as the unslimmed model's engine (in fp32, where several precisions are searched).",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="|".join(("auto", *KINDS)),
    help="What to build for; auto takes one that runs here.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="fp32|fp16|bf16|int8|fp8|auto",
    help="Of the engine; auto searches all that it has here.",
)
@click.option(
    "--batch-size", default=1, show_default=True, type=Whole(limits.BATCH), metavar="N", help="Images a run."
)
@click.option("--threads", type=Whole(limits.THREADS), metavar="N", help="CPU threads that it is to run on.")
@click.option(
    "--data",
    metavar="DIR-or-NAME",
    help="Images to compare schedules on, some hundred: a folder, with labels where it has a folder a class, or a data set as "
    "`sit-deploy validate --data` takes them. Synthetic ones without it.",
)
@click.option("--unlabelled", is_flag=True, help="Folders in --data are not classes.")
@val_options
@click.option(
    "--max-accuracy-drop",
    type=Real(0, 100),
    metavar="PTS",
    help="Fail if the engine loses more points of top-1, before any training.",
)
@click.option(
    "--calib-data",
    type=path_type,
    metavar="DIR",
    help="Images to calibrate int8 and fp8 on.  [default: --data]",
)
@click.option("--calib-images", type=Whole(limits.STREAMED), metavar="N", help="How many of them.")
@damaged_option
@click.option("--quantize", type=Groups(), metavar="GROUPS", help="Layers for 8 bits.  [default: default]")
@click.option("--rest", metavar="fp32|fp16|bf16", help="What an int8 or fp8 graph holds besides.")
@preprocessing_options
@click.option(
    "--method",
    default="transform",
    show_default=True,
    metavar="transform|merge",
    help="How tokens are slimmed without training: docs/slimming.md.",
)
@click.option(
    "--max-stages",
    "most_stages",
    type=Whole(1000, 0),
    default=4,
    show_default=True,
    metavar="N",
    help="Of a schedule.",
)
@click.option(
    "--finalists",
    type=Whole(1000, 0),
    default=3,
    show_default=True,
    metavar="N",
    help="Schedules that are built and timed.",
)
@click.option(
    "--table",
    "tables",
    type=path_type,
    multiple=True,
    metavar="FILE",
    help="A latency table that another search has measured; may repeat.",
)
@click.option(
    "--seconds",
    type=Real(),
    default=300.0,
    show_default=True,
    metavar="S",
    help="How long to measure and compare; building comes on top.",
)
@click.option(
    "--seed", type=Whole(limits.SEED, 0), default=0, show_default=True, metavar="N", help="Of what is drawn."
)
@click.option(
    "-o",
    "--output",
    type=path_type,
    required=True,
    metavar="DIR",
    help="Folder of the front, the choice and its bundle.",
)
@click.option("--force", is_flag=True, help="Replace a search that is there.")
@quiet_option
@json_option
def command(
    precision: str,
    no_ema: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the token schedule for a latency: this model, this engine, 5 ms, the best that can be had.

    Measures a latency table of the engine, compares the schedules that keep the limit by slimming without training, builds and times
    the best few, and writes the front (search.html, search.md, search.json), the bundle, and the commands that fit or train it. A
    search that was stopped goes on where it was. Exit status 1 if no engine keeps the latency, or loses more than
    --max-accuracy-drop; everything is written all the same.
    """
    from sit_deploy.errors import Error
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.search.request import AUTO, SearchRequest

    auto = precision == AUTO
    mine = {name: options.pop(name) for name in _MINE}
    build = BuildRequest(output=None, precision="fp32" if auto else precision, ema=not no_ema, **options)
    request = SearchRequest(build=build, precisions=(AUTO,) if auto else (precision,), **mine)
    from sit_deploy.search.run import search  # which takes a while

    with progress() as report:
        try:
            record = search(request, report)
        except KeyboardInterrupt:
            if not request.output.is_dir():
                raise
            raise Error(
                f"interrupted; {request.output} keeps what was measured and tried: the same command goes on from there"
            ) from None
    if as_json:
        emit_json({"folder": str(request.output.absolute()), **record.to_dict()})
    else:
        _show(record, request.output)
    record.require()


_MINE = (
    *(
        "output",
        "latency",
        "speedup",
        "data",
        "unlabelled",
        "max_accuracy_drop",
        "method",
        "seconds",
        "finalists",
    ),
    *("most_stages", "tables", "seed", "force"),
)


def _show(record: SearchRecord, folder: Path) -> None:
    from sit_deploy.report.search_view import search_view

    where = f"[bold]{literal(folder)}[/]: search.html{', bundle' if record.chosen else ''}; {record.tried} schedules tried in {record.seconds:.0f} s"
    show_search(console(), search_view(record), where)
