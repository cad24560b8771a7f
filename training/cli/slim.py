"""The command `sit-deploy slim`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.advice import NewWeights, next_builds
from sit_deploy.cli.common import (
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
from sit_deploy.cli.options import (
    damaged_option,
    key_option,
    model_options,
    preprocessing_options,
    pretrained_option,
    val_options,
)
from training.cli.method import method_option
from training.progress import duration
from training.slim_options import BATCH_SIZE, LR

if TYPE_CHECKING:
    from rich.console import Console

    from training.slim import Slimmed


@click.command(
    "slim",
    epilog=examples(
        "sit-deploy slim --model sit_s --checkpoint lvvit_s.pth --images photos/ -o student.safetensors",
        "sit-deploy slim --model sit_s --checkpoint t.safetensors --images train/ --val-data val/ --seconds 600",
        "sit-deploy slim --model deit_small_patch16_224 --stages 6,2,2,2 --pretrained --images photos/",
    ),
)
@model_options(required=False)
@method_option
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="Weights of the unslimmed model, or hf-hub:OWNER/NAME.",
)
@pretrained_option
@key_option
@click.option(
    "--no-ema", is_flag=True, help="Take the plain weights where the checkpoint has averaged ones too."
)
@click.option(
    "--images",
    type=path_type,
    required=True,
    metavar="DIR",
    help="Images like those it will see, in folders or not; no labels.",
)
@click.option(
    "-o", "--output", type=path_type, metavar="FILE", help="The weights.  [default: MODEL-slim.safetensors]"
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--seconds", type=Real(), metavar="S", help="How long TSMs are fitted.  [default: 120]")
@click.option(
    "--steps",
    type=Whole(limits.STEPS),
    metavar="N",
    help="Fit for so many steps instead: the same weights each time.",
)
@click.option(
    "--batch-size",
    type=Whole(limits.BATCH),
    default=BATCH_SIZE,
    show_default=True,
    metavar="N",
    help="Images a step.",
)
@click.option(
    "--lr", type=Real(), default=LR, show_default=True, metavar="X", help="Learning rate at its largest."
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
    "--val-data",
    metavar="DIR-or-NAME",
    help="Labelled images, as `sit-deploy validate --data` takes them: measures accuracy.",
)
@val_options
@click.option(
    "--image-size",
    type=Whole(limits.PIXELS),
    metavar="N",
    help="Pixels of the square input.  [default: the checkpoint's]",
)
@click.option(
    "--num-classes",
    type=Whole(limits.CLASSES),
    metavar="N",
    help="2 makes two outputs of a checkpoint's one, exactly.  [default: the checkpoint's]",
)
@preprocessing_options
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="What to compute on."
)
@damaged_option
@quiet_option
@json_option
def command(no_ema: bool, as_json: bool, **options: Any) -> None:
    """Slim a trained model in minutes, without labels.

    Its token slimming modules (TSMs) are fitted to what the model computes without them, on images that nobody need have labelled; every
    other weight stays as it is. FILE has a model card, so `sit-deploy build --checkpoint FILE` needs no more, and
    `sit-deploy train --teacher` makes more of it where there are labels and time.
    """
    from training.slim_request import SlimRequest

    request = SlimRequest(ema=not no_ema, **options)
    request.check()  # before PyTorch is imported, which takes seconds
    from training.slim import slim
    from training.terminal_reporter import TerminalReporter

    with display() as shown:
        result = slim(request, TerminalReporter(shown))
    if as_json:
        emit_json(result.to_dict())
    else:
        plain = request.val_data is not None and request.split is None and Path(request.val_data).is_dir()
        show(console(), result, (request.images, Path(request.val_data) if plain else None))


def show(screen: Console, result: Slimmed, folders: tuple[Path | None, Path | None] = (None, None)) -> None:
    """Print what slimming gave, and what to do next with the folders of images and of labelled ones."""
    from sit_deploy.measure.accuracy import interval

    measured = (f"top-1 % of {result.labelled}",) if result.labelled else ()
    right = ("same class %", "95 %", "KL", *measured)
    listing = table("", *right, title=f"On {result.held_out} images kept apart", right=right)
    accuracy = (f"{result.teacher_top1:.2f}", "", f"{result.top1:.2f}") if result.labelled else ("", "", "")
    rows = [("unslimmed", "100.00", "", "0")]
    for name, found in (("start", result.start), ("fitted", result.end)):
        low, high = interval(found.same, result.held_out)
        rows.append((name, f"{found.same:.2f}", f"{low:.1f} to {high:.1f}", f"{found.kl:.4f}"))
    for row, top1 in zip(rows, accuracy, strict=True):
        listing.add_row(*row, *((top1,) if result.labelled else ()))
    screen.print(listing)
    if result.doubt is not None:
        say(screen, f"[bold yellow]Warning:[/] {literal(result.doubt)}")
    fit = result.fit
    say(
        screen,
        f"{fit.steps} steps in {duration(fit.seconds)}, loss {fit.first_loss:.3f} → {fit.last_loss:.4f}; {result.images} images, "
        f"tokens {'/'.join(map(str, result.tokens))}",
    )
    say(screen, f"[green]✓[/] [bold]{literal(result.weights)}[/]")
    say_next(screen, next_builds(NewWeights(result.weights, False, *folders)))
