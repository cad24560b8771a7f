"""The options that commands share: what model to take, what graph to make of it, and how to serve it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Channels,
    Counts,
    DynamicBatch,
    Groups,
    OutputNames,
    Real,
    Whole,
    path_type,
)
from sit_deploy.data.damaged import USUAL_LIMIT
from sit_deploy.methods import METHODS
from sit_deploy.outputs import in_order

method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How tokens are merged between stages: by TSMs that were trained, or of an unslimmed checkpoint without training, by "
    "transform (the better one) or merge (ToMe).  [default: tsm]",
)
TOKENS = Counts("token counts", "196,98,49,24", limits.PIXELS)

key_option = click.option(
    "--checkpoint-key",
    metavar="KEY",
    help="Where in the checkpoint the weights are, if it has several: an entry, a prefix of names, or ENTRY.PREFIX.",
)


def _damaged_option(default: int, what: str) -> Callable[[Callable], Callable]:
    return click.option(
        "--max-damaged",
        type=Whole(limits.IMAGES),
        default=default,
        show_default=True,
        metavar="N",
        help=f"Unreadable images to leave out before giving up{what}.",
    )


damaged_option = _damaged_option(USUAL_LIMIT, "")

pretrained_option = click.option("--pretrained", is_flag=True, help="Take timm's own weights of --model.")


def _together(_ctx: click.Context, _option: click.Parameter, given: tuple[tuple[str, ...], ...]) -> Any:
    """Return all outputs of an option that was given again; None where it was not given."""
    return in_order([name for names in given for name in names]) if given else None


outputs_option = click.option(
    "--outputs",
    type=OutputNames(),
    multiple=True,
    callback=_together,
    metavar="logits|features|cls|patches",
    help="What the graph gives, one or several: docs/outputs.md.  [default: logits, or features of a model without a classifier]",
)

_GRAPH_OPTIONS = (
    outputs_option,
    click.option(
        "--precision",
        default="fp32",
        show_default=True,
        metavar="fp32|fp16|bf16|int8|fp8",
        help="Type of products, GELU and sums; of the blocks' Linear layers for int8 and fp8.",
    ),
    click.option(
        "--checkpoint",
        type=path_type,
        metavar="FILE",
        help="Weights, .pth or .safetensors, or hf-hub:OWNER/NAME; random ones without it.",
    ),
    pretrained_option,
    method_option,
    key_option,
    click.option(
        "--no-ema", is_flag=True, help="Take the plain weights where the checkpoint has averaged ones too."
    ),
    click.option(
        "--image-size",
        type=Whole(limits.PIXELS),
        metavar="N",
        help="Pixels of the square input, divisible by the patch size.",
    ),
    click.option(
        "--num-classes",
        type=Whole(limits.CLASSES),
        metavar="N",
        help="Classes of the head; read from the checkpoint by default.",
    ),
    click.option(
        "--batch-size",
        default=1,
        show_default=True,
        type=Whole(limits.BATCH),
        metavar="N",
        help="Images a run of the engine.",
    ),
    click.option(
        "--dynamic-batch", type=DynamicBatch(), help="Let the engine take MIN to MAX images, tuned for OPT."
    ),
    click.option(
        "--input",
        default="float32",
        show_default=True,
        metavar="float32|uint8",
        help="uint8: the graph takes pixels, NHWC, and normalises them.",
    ),
    click.option(
        "--opset",
        default=20,
        show_default=True,
        type=Whole(100),
        metavar="17..20|23",
        help="17 is the most TensorRT 8.6 reads; 23 has one operator for attention.",
    ),
    click.option(
        "--calib-data",
        type=path_type,
        metavar="DIR",
        help="Images for the comparisons, FP16 ranges and calibration.",
    ),
    click.option(
        "--calib-images",
        type=Whole(limits.STREAMED),
        metavar="N",
        help="How many of them.  [default: 8; for int8 and fp8 up to 256]",
    ),
    damaged_option,
    click.option(
        "--calib-method",
        default="auto",
        show_default=True,
        metavar="M",
        help="minmax, average, percentile, entropy (int8), mse; auto takes the one that hurts the logits least.",
    ),
    click.option(
        "--calib-percentile",
        default=99.99,
        show_default=True,
        type=Real(most=100),
        metavar="P",
        help="Of the method percentile.",
    ),
    click.option(
        "--calib-cache",
        type=path_type,
        metavar="FILE",
        help="Calibration to use; made if there is none and --calib-data is given.",
    ),
    click.option(
        "--quantize",
        type=Groups(),
        metavar="GROUPS",
        help="Layers for 8 bits: default (qkv, proj, fc1, fc2, tsm), stem, pool, head, attention, aggregation, residual, all; or auto, "
        "chosen by timing the engine.  [default: auto for int8 where the engine runs here]",
    ),
    click.option(
        "--rest",
        metavar="fp32|fp16|bf16",
        help="What an int8 or fp8 graph holds besides; bf16 for OpenVINO, where the CPU has it.  "
        "[default: fp32 for CPUs, fp16 for TensorRT]",
    ),
)

_PREPROCESSING_OPTIONS = (
    click.option("--mean", type=Channels(), help="Of the pixels in [0, 1]."),
    click.option("--std", type=Channels(), help="Likewise."),
    click.option(
        "--crop-mode",
        metavar="center|squash",
        help="Crop pictures at the centre, or squeeze them into a square.",
    ),
    click.option(
        "--crop-pct",
        type=Real(most=1),
        metavar="X",
        help="Share of the resized sides that the crop keeps.",
    ),
    click.option("--interpolation", metavar="NAME", help="Of resizing: bicubic, bilinear or lanczos."),
    click.option(
        "--orientation",
        metavar="exif|stored",
        help="Turn pictures as their EXIF says, or take their pixels as stored.",
    ),
)

_SERVING_OPTIONS = (
    click.option("--name", metavar="NAME", help="Of the model in Triton.  [default: MODEL_PRECISION]"),
    click.option(
        "--max-queue-delay",
        default=100,
        show_default=True,
        type=Whole(limits.MICROSECONDS),
        metavar="US",
        help="Microseconds that a request may wait for others.",
    ),
    click.option(
        "--performance",
        type=click.Choice(("latency", "throughput")),
        default="latency",
        show_default=True,
        help="A copy on all CPUs, or a copy a CPU (Python backend).",
    ),
    click.option(
        "--instances",
        type=Whole(limits.PROCESSES),
        metavar="N",
        help="Copies that run at a time.  [default: 1; for throughput one a CPU]",
    ),
    click.option(
        "--threads",
        type=Whole(limits.THREADS, 0),
        metavar="N",
        help="CPU threads of a copy (Python backend).  [default: what it was built for; for throughput 1]",
    ),
)


_PERFORMANCE_OPTIONS = (
    click.option(
        "--performance",
        type=click.Choice(("latency", "throughput")),
        default="latency",
        show_default=True,
        help="All threads on one batch, or several batches at a time (CPU engines).",
    ),
    click.option(
        "--streams",
        type=Whole(limits.THREADS, 1),
        metavar="N",
        help="Batches at a time, for throughput.  [default: the runtime's choice]",
    ),
)


_KEY_OPTIONS = (
    click.option("--image-key", metavar="NAME", help="Column of images of hfds/….  [default: by its type]"),
    click.option("--label-key", metavar="NAME", help="Column of classes of hfds/….  [default: by its type]"),
)


_WHICH_OPTIONS = (
    click.option("--data-dir", type=path_type, metavar="DIR", help="Where a data set of timm lies."),
    click.option(
        "--split",
        metavar="NAME",
        help="Its part to take, folder or split; . for the folder itself.  [default: val, test or what is called alike]",
    ),
    *_KEY_OPTIONS,
)

_DATA_OPTIONS = (
    click.option(
        "--data",
        metavar="DIR-or-NAME",
        help="Folder with one subfolder a class, or one with such folders in val or test, or digits, or a data set of timm "
        "(hfds/…, torch/…): measures accuracy.",
    ),
    *_WHICH_OPTIONS,
    click.option(
        "--images",
        type=Whole(limits.IMAGES, 1),
        metavar="N",
        help="So many of the images, evenly spread.  [default: all]",
    ),
    _damaged_option(0, ": what is measured is then of the others"),
)


def model_options(*, required: bool) -> Callable[[Callable], Callable]:
    """Make the decorator that adds what names a model and how it slims.

    Args:
        required: --model has to be given, as no checkpoint can name it.
    """
    card = "" if required else " A checkpoint with a model card or a config.json names it itself."
    options = (
        click.option(
            "--model",
            required=required,
            metavar="NAME",
            help=f"One of `sit-deploy models`, or a vision transformer of timm, hf-hub:OWNER/NAME, local-dir:PATH.{card}",
        ),
        click.option(
            "--stages",
            type=Counts("block counts", "6,2,2,2", limits.BLOCKS),
            help="Blocks of each stage, to slim another way than the model's own.",
        ),
        click.option(
            "--keeping-ratio",
            type=Real(),
            metavar="R",
            help="Share of the patch tokens that each further stage keeps.",
        ),
        click.option(
            "--kept",
            type=TOKENS,
            help="Patch tokens of each stage, all of an image's first; in place of a ratio.",
        ),
    )
    return lambda command: _add(options, command)


def graph_options(command: Callable) -> Callable:
    """Add what says which graph to make to a command, which gets it as the fields of `BuildRequest`, but for `no_ema`."""
    return model_options(required=False)(_add(_GRAPH_OPTIONS, preprocessing_options(command)))


def preprocessing_options(command: Callable) -> Callable:
    """Add what may be said of the preprocessing: `mean`, `std`, `crop_mode`, `crop_pct`, `interpolation`, `orientation`, None by default."""
    return _add(_PREPROCESSING_OPTIONS, command)


def serving_options(command: Callable) -> Callable:
    """Add how Triton is to run a model: `name`, and fields of `sit_deploy.triton.config.Serving`."""
    return _add(_SERVING_OPTIONS, command)


def performance_options(command: Callable) -> Callable:
    """Add what an engine is opened for: `performance` and `streams`."""
    return _add(_PERFORMANCE_OPTIONS, command)


def data_options(command: Callable) -> Callable:
    """Add which labelled images to measure on.

    They are the fields of `sit_deploy.validation.labelled_options.LabelledOptions`.
    """
    return _add(_DATA_OPTIONS, command)


def val_options(command: Callable) -> Callable:
    """Add which part of labelled images to take: `data_dir`, `split`, `image_key`, `label_key`."""
    return _add(_WHICH_OPTIONS, command)


def key_options(command: Callable) -> Callable:
    """Add which columns of a data set of the Hub to take: `image_key`, `label_key`."""
    return _add(_KEY_OPTIONS, command)


def _add(options: tuple[Callable, ...], command: Callable) -> Callable:
    for option in reversed(options):  # as decorators: the last one applied is the first in the help text
        command = option(command)
    return command
