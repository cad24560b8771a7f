"""The command `sit-deploy train`, which `python -m training` is too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.advice import NewWeights, next_builds
from sit_deploy.cli.common import (
    Channels,
    Real,
    Whole,
    console,
    display,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    quiet_option,
    say,
    say_next,
    table,
)
from sit_deploy.cli.options import damaged_option, key_options, model_options
from training.cli.method import method_option
from training.progress import duration
from training.recipes import Recipe, default_text, option_name
from training.request import KEPT_HIGH

if TYPE_CHECKING:
    from rich.console import Console


def recipe_options(command: Callable) -> Callable:
    """Add an option for every field of a recipe; one that is not given is None."""
    for entry in reversed(fields(Recipe)):
        text = f"{entry.metadata['help']}  [default: {default_text(entry.name)}]"
        if entry.type == "bool":
            name = option_name(entry.name)
            option = click.option(f"{name}/--no-{name[2:]}", entry.name, default=None, help=text)
        else:
            kind = {"int": Whole(limits.BATCH), "float": Real(), "str": str}[str(entry.type)]
            metavar = {"int": "N", "float": "X", "str": "NAME"}[str(entry.type)]
            option = click.option(option_name(entry.name), entry.name, type=kind, metavar=metavar, help=text)
        command = option(command)
    return command


@click.command(
    "train",
    epilog=examples(
        "sit-deploy train --model lvvit_s --init lvvit_s.pth --data flowers/ -o runs/teacher",
        "sit-deploy train --model sit_s --teacher runs/teacher/model.safetensors --data flowers/ -o runs/sit_s",
        "sit-deploy train --model deit_small_patch16_224 --stages 6,2,2,2 --teacher deit.pth --data imagenet/",
        "sit-deploy train --model sit_s --qat --init sit_s.safetensors --teacher lvvit_s.pth --data imagenet/",
        "sit-deploy train --model lvvit_nano --data digits --epochs 5",
    ),
)
@model_options(required=True)
@method_option
@click.option(
    "--data", required=True, metavar="DIR|NAME",
    help="Folder with train/ and val/, each with a folder a class; digits (built in); or timm's hfds/…, wds/…, torch/….",
)  # fmt: skip
@click.option("--data-dir", type=path_type, metavar="DIR", help="Where the data sets of timm lie.")
@click.option("--train-split", metavar="NAME", help="Part to train on.  [default: train]")
@click.option(
    "--val-split", metavar="NAME", help="Part held out.  [default: val, test or what is called alike]"
)
@key_options
@click.option(
    "--num-classes",
    type=Whole(limits.CLASSES),
    metavar="N",
    help="Classes of streamed data, which does not tell.",
)
@click.option(
    "--teacher",
    type=path_type,
    metavar="FILE",
    help="Checkpoint of the unslimmed model, or hf-hub:OWNER/NAME: distils by FRD.",
)
@click.option(
    "--warm-start/--no-warm-start",
    default=True,
    show_default=True,
    help="Fit the TSMs of a student before its first step, as `sit-deploy slim` does.",
)
@click.option(
    "--init",
    type=path_type,
    metavar="FILE",
    help="Checkpoint to start from, or hf-hub:OWNER/NAME; its head may have other classes.",
)
@click.option("--pretrained", is_flag=True, help="Start from timm's own weights of --model.")
@click.option(
    "--checkpoint-key",
    metavar="KEY",
    help="Where in --teacher or --init the weights are, if it has several: an entry, a prefix of names, or ENTRY.PREFIX.",
)
@click.option(
    "--qat",
    is_flag=True,
    help="Quantization-aware: get the trained model of --init used to INT8's rounding.",
)
@click.option(
    "--qat-images",
    type=Whole(limits.STREAMED),
    default=256,
    show_default=True,
    metavar="N",
    help="Training images to calibrate --qat on.",
)
@click.option(
    "--qat-skip",
    multiple=True,
    default=KEPT_HIGH,
    show_default=True,
    metavar="PATTERN",
    help="Layers that --qat leaves in float, as `sit-deploy inspect` names them; '' for none. Repeatable.",
)
@click.option("--cnn-teacher", metavar="NAME", help="timm name of an extra teacher, for a dist token.")
@click.option("--cnn-checkpoint", type=path_type, metavar="FILE", help="Its weights.")
@click.option(
    "-o", "--output", type=path_type, metavar="DIR", help="Folder of the run.  [default: runs/MODEL]"
)
@click.option(
    "--resume", is_flag=True, help="Go on with the run in that folder, or start it if there is none."
)
@click.option(
    "--image-size",
    type=Whole(limits.PIXELS),
    metavar="N",
    help="Pixels of the square input.  [default: the teacher's, --init's, or the model's]",
)
@click.option(
    "--mean", type=Channels(), help="Of the pixels in [0, 1].  [default: the checkpoint's, or by the name]"
)
@click.option("--std", type=Channels(), help="Likewise.")
@click.option(
    "--crop-mode",
    metavar="center|squash",
    help="In evaluation, crop pictures at the centre or squeeze them into a square.",
)
@click.option(
    "--interpolation", metavar="NAME", help="Of resizing in evaluation: bicubic, bilinear or lanczos."
)
@click.option(
    "--orientation",
    metavar="exif|stored",
    help="Turn pictures as their EXIF says, or take their pixels as stored.  [default: exif; of --qat as trained]",
)
@click.option(
    "--seed",
    type=Whole(limits.SEED),
    default=0,
    show_default=True,
    metavar="N",
    help="Of all random numbers.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="What to compute on."
)
@click.option(
    "--amp",
    default="auto",
    show_default=True,
    metavar="auto|off|bf16|fp16",
    help="Mixed precision; auto: off on a CPU.",
)
@click.option(
    "--accumulate", type=Whole(limits.BATCH), default=1, show_default=True, metavar="N", help="Passes a step."
)
@click.option("--sync-batchnorm", is_flag=True, help="BatchNorm over the images of all processes.")
@click.option(
    "--grad-checkpointing/--no-grad-checkpointing",
    default=None,
    help="Compute blocks again for the gradient: less memory, more time.  [default: off; sit_l on]",
)
@click.option("--channels-last", is_flag=True, help="Images and convolutions in NHWC.")
@click.option("--compile", is_flag=True, help="Compile the models with torch.compile.")
@click.option(
    "--workers",
    type=Whole(limits.PROCESSES),
    metavar="N",
    help="Processes that decode images.  [default: by cores]",
)
@damaged_option
@click.option(
    "--save-every",
    type=Whole(limits.STEPS),
    default=1000,
    show_default=True,
    metavar="N",
    help="Steps between saved states, besides every epoch.",
)
@click.option(
    "--log-every",
    type=Whole(limits.STEPS),
    default=10,
    show_default=True,
    metavar="N",
    help="Steps between rows of the log.",
)
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too.")
@recipe_options
@quiet_option
@json_option
def command(model: str, output: Path | None, as_json: bool, **options: Any) -> None:
    """Train a teacher, or distil a SiT from one.

    Without --teacher: cross-entropy, from scratch or from --init. With it: FRD (classification, token and logits losses),
    the student starting from its teacher's weights. DIR/model.safetensors is the best epoch by held-out accuracy and
    carries classes and preprocessing, so `sit-deploy build --checkpoint` needs no more. Options below --tensorboard
    change the model's recipe, whose values are the defaults.

    With --qat, the trained model of --init recovers under INT8's rounding, by FRD or without a teacher by cross-entropy;
    accuracies are those of the INT8 model, and the ranges it was trained with are in the model card for
    `sit-deploy build --precision int8`.

    On several GPUs: torchrun --nproc-per-node 8 -m sit_deploy train, with the same options.
    """
    from training.request import TrainRequest

    names = {f.name for f in fields(Recipe)}
    overrides = tuple((k, v) for k, v in options.items() if k in names and v is not None)
    rest = {k: v for k, v in options.items() if k not in names}
    rest["qat_skip"] = tuple(filter(None, rest["qat_skip"]))
    request = TrainRequest(model=model, output=output, overrides=overrides, **rest)
    request = request.named()
    request.check()  # before PyTorch is imported, which takes seconds
    request.check_data()
    from training.loop import train
    from training.terminal_reporter import TerminalReporter

    if int(os.environ.get("RANK", 0)):
        train(request)
        return
    with display() as shown:
        summary = train(request, TerminalReporter(shown))
    if as_json:
        emit_json(summary.to_dict())
    else:
        show_summary(console(), summary)


def show_summary(screen: Console, summary: Any) -> None:
    """Print a finished run: teacher and student side by side, and what to do next."""
    right = ("GMACs", "top-1 %", "top-5 %")
    listing = table("", "model", *right, "tokens", title=f"On {summary.images} held-out images", right=right)
    student = "student" if summary.teacher else ""
    few = summary.num_classes is not None and summary.num_classes <= 5  # every answer is among the first five
    if summary.int8:
        student = f"{student} in INT8".strip()
    for role, side in (("teacher", summary.teacher), (student, summary.student)):
        if side is not None:
            tokens = "/".join(map(str, side.tokens))
            top5 = "—" if few else f"{side.top5:.2f}"
            figures = (f"{side.macs / 1e9:.3f}", f"{side.top1:.2f}", top5)
            listing.add_row(role, side.title or side.name, *figures, tokens)
    screen.print(listing)
    if summary.teacher:
        ratio = summary.teacher.macs / summary.student.macs
        say(
            screen,
            f"The student retains {summary.retained:.1f} % of the teacher's accuracy at {ratio:.1f}x fewer MACs; it agrees "
            f"with it on {summary.agreement:.1f} % of the images (KL {summary.kl:.3f}).",
        )
    if summary.damaged_images:
        say(
            screen,
            f"[yellow]{summary.damaged_images} images could not be read or augmented and were skipped.[/]",
        )
    warm = f"{duration(summary.warm_start['seconds'])} of warm start, " if summary.warm_start else ""
    say(
        screen,
        f"[green]✓[/] [bold]{literal(summary.weights)}[/]: epoch {summary.best_epoch} of {summary.epochs}, "
        f"{warm}{duration(summary.seconds)} of training; curves in {literal(summary.curves)}",
    )
    folders = (summary.train_folder, summary.val_folder)
    say_next(screen, next_builds(NewWeights(summary.weights, summary.int8, *folders)))
