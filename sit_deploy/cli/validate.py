"""The command `sit-deploy validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Real,
    Whole,
    console,
    device_option,
    emit_json,
    examples,
    json_option,
    literal,
    path_type,
    progress_of_first,
    quiet_option,
    say,
    table,
)
from sit_deploy.cli.options import data_options, preprocessing_options

if TYPE_CHECKING:
    from rich.console import Console

    from engines.layer_comparison import LayerComparison
    from sit_deploy.report.build_types import AccuracyRecord

_SHOWN = 15  # layers, the slowest or the worst; --json has all
_SHOWN_FEW = 5  # classes and images; --json has all


@click.command(
    "validate",
    epilog=examples(
        "sit-deploy validate sit_s-fp32",
        "sit-deploy validate sit_s-fp32 --data imagenet/val --max-accuracy-drop 0.5 --min-agreement 98",
        "sit-deploy validate sit_s-fp16 --data imagenet/val --resume progress.json",
        "sit-deploy validate dinov2-fp16 --data photos/ --min-agreement 99",
    ),
)
@click.argument("bundle", type=path_type)
@data_options
@click.option(
    "--resume", type=path_type, metavar="FILE", help="Note progress in FILE, and go on from what it says."
)
@click.option("--engine", metavar="onnxruntime", help="Run a TensorRT bundle's graph on this CPU instead.")
@click.option("--max-accuracy-drop", type=Real(0, 100), metavar="PTS", help="Fail if top-1 falls by more.")
@click.option("--min-agreement", type=Real(0, 100), metavar="PCT", help="Fail if fewer images agree.")
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="The weights, or hf-hub:OWNER/NAME, if they moved since the build.",
)
@click.option("--threads", type=Whole(limits.THREADS, 1), metavar="N", help="CPU threads of the engine.")
@device_option
@preprocessing_options
@click.option(
    "--layers", is_flag=True, help="Time of each layer, as the engine tells it; of TensorRT types too."
)
@click.option(
    "--debug",
    is_flag=True,
    help="Which layer drifts first? TensorRT against its graph, or a CPU engine's graph against FP32.",
)
@quiet_option
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Check a bundle on this machine: hashes, golden outputs and, given labelled images, accuracy.

    Of embeddings, images tell how alike both sides' vectors are, labels or none. Exit status 1 if the golden outputs are out of tolerance, or a limit is not kept or would be by any engine: a model at
    chance loses nothing, and images of one class, or that all get one, tell nothing apart. Started by torchrun (torchrun
    --nproc-per-node 8 -m sit_deploy validate ...), the processes share the images.
    """
    from sit_deploy.validation.validate import ValidateRequest, validate

    with progress_of_first() as report:
        validation = validate(ValidateRequest(**options), report)
    if not validation.main:
        return
    if as_json:
        emit_json(validation.to_dict())
    else:
        _show(validation.to_dict(), validation.debug, validation.bundle.manifest.precision)
    validation.require()


def _show(result: dict[str, Any], compared: LayerComparison | None, precision: str) -> None:
    from sit_deploy.cli.build import accuracy_table, show_hops
    from sit_deploy.report.build_types import AccuracyRecord, HopRecord
    from sit_deploy.report.view import preprocessing_words

    screen = console()
    show_hops(screen, [HopRecord.of(result["golden"])], f"{result['bundle']} on {result['engine']}")
    measured = result["accuracy"]
    if measured:
        say(
            screen,
            f"Preprocessing: {literal(preprocessing_words(measured['preprocessing'], measured['preprocessing_source']))}",
        )
        if measured["preprocessing_overridden"]:
            say(
                screen,
                "[bold yellow]Warning:[/] both sides were measured with another preprocessing than the bundle's: these figures "
                "are not those of the bundle as it stands; build it again with the same options to keep it",
            )
        if measured["turned"]:
            say(screen, f"[bold yellow]Warning:[/] {literal(measured['turned'])}")
        accuracy = AccuracyRecord.of(measured)
        screen.print(accuracy_table(accuracy))
        _show_differences(screen, accuracy)
    if found := result.get("neighbours"):
        _show_neighbours(screen, found)
        for note in found["notes"]:
            say(screen, f"Note: {literal(note)}")
    if result["layers"]:
        _show_layers(screen, result["layers"], precision)
    if compared:
        _show_debug(screen, compared)


def _show_neighbours(screen: Console, found: dict[str, Any]) -> None:
    """Print how often the nearest other image has an image's label, by both sides' vectors, and how alike these are."""
    from sit_deploy.report.embedding_text import alone_words

    cosines = (
        f"cosine of both sides' vectors at least {found['cosine_min']:.6f} ({literal(found['farthest'])}), mean "
        f"{found['cosine_mean']:.6f}"
    )
    if found["classes"] is None:
        same = found["same_neighbour"]
        neighbours = "" if same is None else f"the same nearest neighbour for {same:.2f} %; "
        images = f"{found['images']} image{'s' * (found['images'] != 1)} without labels to compare"
        say(screen, f"{found['output']} of {images}: {neighbours}{cosines}")
        return
    say(
        screen,
        f"Nearest neighbours by {found['output']} ({found['images']} images of {found['classes']} classes, each with the label of its "
        f"nearest other by cosine): PyTorch {found['reference']:.2f} % right, engine {found['engine']:.2f} %",
    )
    if found["alone"]:
        say(screen, f"{alone_words(found['alone'])}.")
    say(
        screen,
        f"the same label for {found['same_label']:.2f} % of images, the same neighbour for {found['same_neighbour']:.2f} %; {cosines}",
    )


def _show_differences(screen: Console, measured: AccuracyRecord) -> None:
    """Print how near the logits are, the classes that lost most, and the images whose class changed."""
    from sit_deploy.report.view import logits_words

    say(screen, logits_words(measured))
    worst = [row for row in measured.by_class if row.engine < row.reference][:_SHOWN_FEW]
    if worst:
        listing = table("class", "images", "PyTorch", "engine", right=("images", "PyTorch", "engine"))
        listing.title, listing.title_justify = "Classes that lost most, images right", "left"
        for row in worst:
            listing.add_row(literal(row.name), str(row.images), str(row.reference), str(row.engine))
        screen.print(listing)
    if measured.flips:
        columns = ("image", "is", "PyTorch", "engine")
        listing = table(*columns, title="Surest of the images whose class changed", fold=columns)
        for flip in measured.flips[:_SHOWN_FEW]:
            listing.add_row(
                literal(flip.image),
                literal(flip.label_name),
                literal(f"{flip.reference_name} {flip.reference_probability:.0%}"),
                literal(f"{flip.engine_name} {flip.engine_probability:.0%}"),
            )
        screen.print(listing)
    for note in measured.notes:
        say(screen, f"Note: {literal(note)}")
    for warning in (measured.warning, *measured.doubts):
        if warning:
            say(screen, f"[bold yellow]Warning:[/] {literal(warning)}")


def _show_layers(screen: Console, timed: dict[str, Any], precision: str) -> None:
    from sit_deploy.report.kernels_text import engine_text

    listing = table("layer", "types", "ms", "share", right=("ms", "share"), fold=("layer",))
    for row in timed["layers"][:_SHOWN]:
        ms = "" if row["ms"] is None else f"{row['ms']:.4f}"
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        listing.add_row(literal(row["layer"]), literal(", ".join(row["types"])), ms, share)
    screen.print(listing)
    if timed["kept"] is None:
        say(screen, f"{len(timed['layers'])} layers, the profiler attached; --json has all.")
        return
    say(
        screen,
        f"{len(timed['kept'])} low-precision products run in the types of the graph, {len(timed['raised'])} do not, of "
        f"{len(timed['untold'])} the engine does not tell.",
    )
    for node in timed["raised"]:
        say(screen, f"[yellow]not in the type of the graph:[/] {literal(node)}")
    if census := engine_text(timed["census"] or {}, precision):
        say(screen, f"Kernels: {literal(census)}")


def _show_debug(screen: Console, compared: LayerComparison) -> None:
    listing = table(
        "tensor", "operator", "error", "SQNR dB", "", right=("error", "SQNR dB"), fold=("tensor",)
    )
    for row in compared.worst(_SHOWN):
        error = "not finite" if row.error is None else f"{row.error:.1e}"
        sqnr = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        state = "[green]ok[/]" if row.passed else "[red]out of tolerance[/]"
        listing.add_row(literal(row.tensor), literal(row.operator), error, sqnr, state)
    screen.print(listing)
    first = compared.first_bad
    if first:
        say(
            screen,
            f"[red]first bad layer:[/] {literal(first.node)} ({literal(first.operator)}), tensor {literal(first.tensor)}",
        )
    else:
        say(screen, f"[green]✓[/] {len(compared.tensors)} tensors, all within {compared.tolerance:g}")
