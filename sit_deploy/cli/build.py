"""The command `sit-deploy build`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from engines import KINDS
from sit_deploy import limits
from sit_deploy.cli.common import (
    Real,
    Whole,
    console,
    emit_json,
    examples,
    file_size,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
    table,
)
from sit_deploy.cli.options import graph_options, val_options
from sit_deploy.outputs import can_be_reported, has_classes
from sit_deploy.report.build_types import AccuracyRecord, BuildReport, GraphReport, HopRecord
from sit_deploy.report.figure import figure
from sit_deploy.report.kernels_text import census_text, lowered_note
from sit_deploy.report.speedup_text import sentence
from sit_deploy.report.tuning_view import tuning_sentence
from sit_deploy.report.view import (
    accuracy_rows,
    agreement_cell,
    difference,
    output_words,
    preprocessing_words,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sit_deploy.bundle import Bundle

ENGINES = ("auto", *KINDS)


@click.command(
    "build",
    epilog=examples(
        "sit-deploy build --model sit_s --precision fp16",
        "sit-deploy build --model sit_s --checkpoint sit_s.pth --precision fp16 --val-data imagenet/val",
        "sit-deploy build --model sit_xs --engine onnxruntime --batch-size 8 -o xs-cpu",
        "sit-deploy build --model sit_s --precision fp16 --dynamic-batch 1:8:32 --target sm80 --target sm89",
        "sit-deploy build --checkpoint s.safetensors --precision int8 --calib-data train --val-data val",
        "sit-deploy build --checkpoint s.safetensors --precision int8 --calib-cache s.json --calib-data train",
        "sit-deploy build --checkpoint s.pth --precision int8 --engine openvino --calib-data train --min-sqnr 32",
        "sit-deploy build --model deit_small_patch16_224 --stages 6,2,2,2 --precision fp16",
    ),
)
@graph_options
@click.option(
    "--engine", default="auto", show_default=True, metavar="|".join(ENGINES), help="What to build for."
)
@click.option("--labels", type=path_type, metavar="FILE", help="Class names, one a line in label order.")
@click.option(
    "--val-data",
    metavar="DIR-or-NAME",
    help="Labelled images, as `sit-deploy validate --data` takes them: measures accuracy.",
)
@val_options
@click.option(
    "--max-accuracy-drop",
    type=Real(0, 100),
    metavar="PTS",
    help="Fail if top-1 falls by more; int8 and fp8 keep layers high instead, or give way to fp16 or fp32.",
)
@click.option(
    "--min-sqnr",
    type=Real(),
    metavar="DB",
    help="Of the logits against float32: the fastest plan that keeps it is built (--quantize auto).  [default: 30, or 1 below the default groups']",
)
@click.option(
    "--tune-seconds",
    type=Real(),
    metavar="S",
    help="How long plans for 8 bits are timed (--quantize auto).  [default: 120]",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Also quantize one layer at a time and report what each costs (int8, fp8).",
)
@click.option(
    "--target", "targets", multiple=True, metavar="smXY", help="GPU to build for (TensorRT-RTX); may repeat."
)
@click.option(
    "--timing-cache", type=path_type, metavar="FILE", help="Kernel timings kept between builds (TensorRT)."
)
@click.option(
    "--optimization-level", type=Whole(limits.THREADS), metavar="0..5", help="Builder effort (TensorRT)."
)
@click.option(
    "--workspace",
    type=Whole(limits.MEBIBYTES, 1),
    metavar="MIB",
    help="Scratch memory of one layer (TensorRT).",
)
@click.option(
    "--hardware-compatibility",
    metavar="LEVEL",
    help="ampere_plus or same_compute_capability: runs on other GPUs than this one (TensorRT).",
)
@click.option("--version-compatible", is_flag=True, help="Runs on later releases too (TensorRT).")
@click.option(
    "--strip-weights", is_flag=True, help="Leave the weights to model.onnx beside the engine (TensorRT)."
)
@click.option("--refit", is_flag=True, help="Weights of the engine can be replaced (TensorRT).")
@click.option(
    "--allow-wider-kernels",
    is_flag=True,
    help="Keep an engine that multiplies in more bits than asked for (TensorRT, OpenVINO).",
)
@click.option(
    "--profiling",
    default="detailed",
    show_default=True,
    metavar="none|names|detailed",
    help="What the engine tells of its layers (TensorRT).",
)
@click.option("--threads", type=Whole(limits.THREADS), metavar="N", help="CPU threads that it is to run on.")
@click.option(
    "-o", "--output", type=path_type, metavar="DIR", help="Folder of the bundle.  [default: MODEL-PRECISION]"
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@quiet_option
@json_option
def command(precision: str, output: Path | None, no_ema: bool, as_json: bool, **options: Any) -> None:
    """Build a bundle: a checked engine with its graph, its proof and its papers.

    Every hop (PyTorch, deploy form, ONNX, precision, engine) is compared with the one before and with the PyTorch
    reference; if one is out of tolerance, nothing is written and the exit status is 1.
    """
    from sit_deploy.pipeline.build import build
    from sit_deploy.pipeline.request import BuildRequest

    request = BuildRequest(precision=precision, output=output, ema=not no_ema, **options)
    with progress() as report:
        bundle = build(request, report)
    result = json.loads((bundle.path / "report.json").read_text(encoding="utf-8"))
    if as_json:
        emit_json({"bundle": str(bundle.path.absolute()), **result})
    else:
        show(BuildReport.from_dict(result), bundle)


def show(report: BuildReport, bundle: Bundle) -> None:
    """Print a build's report for people: graph, engine, accuracy, files, and what to do next."""
    screen = console()
    show_graph(screen, report)
    say(screen, f"Engine: {literal(report.engine.why)}")
    if census := census_text(report.engine.details):
        say(screen, f"Kernels: {literal(census)}")
    if lowered := lowered_note(report.engine.details):
        say(screen, f"Kernels: {literal(lowered)}")
    if report.quantization:
        show_quantization(screen, report)
        if kernels := report.engine.details.get("int8"):
            kinds = ", ".join(f"{name} {count}" for name, count in kernels["operators"].items())
            say(
                screen,
                f"{kernels['products']} of {kernels['of']} products with weights run in INT8 kernels ({kinds})",
            )
    else:
        show_tuning(screen, report)
    if report.accuracy:
        screen.print(accuracy_table(report.accuracy))
    files = ", ".join(f"{name} {file_size(file.bytes)}" for name, file in bundle.manifest.files.items())
    say(screen, f"[green]✓[/] [bold]{literal(bundle.path)}[/]: {literal(files)}")
    advice = next_step(bundle, ran_here=all(hop.compared for hop in report.hops))
    say(screen, f"Built in {sum(report.seconds.values()):.0f} s. Next: {literal(advice)}")


def next_step(bundle: Bundle, *, ran_here: bool) -> str:
    """Return the command that a user of a new bundle types next."""
    path = shlex.quote(str(bundle.path))
    if not ran_here:
        return f"sit-deploy validate {path} on a machine with a GPU, or sit-deploy bench {path} --engine onnxruntime here"
    names = [output.name for output in bundle.outputs]
    if has_classes(names) or not can_be_reported(names):
        return f"sit-deploy bench {path}"
    return f"sit-deploy validate {path} --data DIR"


def show_graph(screen: Console, report: GraphReport) -> None:
    """Print what a report says of the graph: notes on its weights, its images, every hop, and the nodes kept in fp32."""
    for note in report.notes:
        kind = "[bold yellow]Warning:[/]" if report.warns(note) else "Note:"
        say(screen, f"{kind} {literal(note)}")
    say(
        screen,
        f"Preprocessing: {literal(preprocessing_words(asdict(report.preprocessing), report.preprocessing_source))}",
    )
    show_hops(screen, report.hops, f"Against PyTorch, on {report.compared_on}")
    for node in report.plan.held_back:
        say(screen, f"Kept in fp32: {literal(node.node)} ({literal(node.reason)})")


def show_quantization(screen: Console, report: BuildReport) -> None:
    """Print what a report says of 8 bits: how much runs in them, how they were chosen, and whether they are faster."""
    quantization, precision = report.quantization, report.precision
    low = [row for row in quantization.layers if row.precision != "high"]
    worst = min((row for row in low if row.sqnr_db is not None), key=lambda row: row.sqnr_db, default=None)
    text = (
        f"{precision}: {len(low)} of {len(quantization.layers)} layers, {quantization.share_of_macs:.1%} of the work, "
        f"calibrated by {quantization.method}"
    )
    if worst:
        text += f"; worst by itself {worst.layer}, {worst.sqnr_db:.1f} dB of its own outputs"
    say(screen, literal(text))
    show_tuning(screen, report)
    if speed := quantization.speed:
        gain = speed.speedup()
        if gain.doubt is None:  # a note has the doubt
            say(screen, literal(f"{sentence(precision, speed.over, gain)} at batch {speed.batch_size}"))


def show_tuning(screen: Console, report: BuildReport) -> None:
    """Print how a plan was chosen by measuring, or what 8 bits were given up for."""
    if report.tuned is not None:
        words = tuning_sentence(report.tuned)
        say(screen, literal(f"{words[:1].upper()}{words[1:]}"))


def show_hops(screen: Console, hops: Sequence[HopRecord], title: str) -> None:
    """Print hops as a table, errors in standard deviations of the reference's outputs, and the notes below it."""
    right = ("error", "tolerance", "step", "SQNR dB", "agree")
    listing = table("hop", *right, "", title=literal(title), right=right)
    for hop in hops:
        cells = [
            figure(hop.tolerance, "g"),
            figure(hop.step_error, ".1e"),
            "exact" if hop.error == 0 else figure(hop.sqnr_db, ".1f"),
            agreement_cell(hop),
        ]
        error = figure(hop.error, ".1e") if hop.compared else "[yellow]not run[/]"
        listing.add_row(
            literal(hop.name), error, *(cells if hop.compared else [""] * len(cells)), _state(hop)
        )
    screen.print(listing)
    for hop in hops:
        if hop.note:
            say(screen, literal(f"{hop.name}: {hop.note}"))
    last = [hop for hop in hops if hop.outputs][-1:]
    for words in (words for hop in last for words in output_words(hop)):
        say(screen, literal(f"{last[0].name}, {words}"))


def _state(hop: HopRecord) -> str:
    if not hop.compared:
        return ""
    return "[green]ok[/]" if hop.passed else "[red]failed[/]"


def accuracy_table(accuracy: AccuracyRecord) -> Table:
    """Return the figures of both sides, with what their difference says below."""
    right = ("top-1 %", "95 %", "top-5 %", "agree %")
    title = f"Accuracy on {accuracy.images} images of {accuracy.data}"
    listing = table("", *right, title=literal(title), right=right)
    for who, *figures in accuracy_rows(accuracy):
        listing.add_row(literal(who), *figures)
    listing.caption = difference(accuracy)
    listing.caption_justify, listing.caption_style = "left", ""
    return listing
