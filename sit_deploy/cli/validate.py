"""sit-deploy validate"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from engines import ON_CPU
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
    progress,
    say,
    table,
)
from sit_deploy.cli.options import (
    DATA_WHICH,
    data_options,
    preprocessing_options,
    refuse_options_of_data,
    which_data,
)
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from engines.layer_comparison import LayerComparison
    from sit_deploy.processes import World

_SHOWN = 15  # layers, the slowest or the worst; --json has all
_SHOWN_FEW = 5  # classes and images; --json has all


@click.command(
    "validate",
    epilog=examples(
        "sit-deploy validate sit_s-fp32",
        "sit-deploy validate sit_s-fp32 --data imagenet/val --max-accuracy-drop 0.5 --min-agreement 98",
        "sit-deploy validate sit_s-fp16 --data imagenet/val --resume progress.json",
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
    "--checkpoint", type=path_type, metavar="FILE", help="The weights, if they moved since the build."
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
@json_option
def command(
    bundle: Path,
    data: str | None,
    engine: str | None,
    max_accuracy_drop: float | None,
    min_agreement: float | None,
    threads: int | None,
    device: str | None,
    layers: bool,
    debug: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Check a bundle on this machine: hashes, golden outputs and, given labelled images, accuracy.

    Exit status 1 if the golden outputs are out of tolerance, or a limit is not kept or would be by any engine: a model at
    chance loses nothing, and images of one class, or that all get one, tell nothing apart. Started by torchrun (torchrun
    --nproc-per-node 8 -m sit_deploy validate ...), the processes share the images.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.inference import load
    from sit_deploy.measure.layers import check_layers, time_layers
    from sit_deploy.measure.parity import require
    from sit_deploy.validation.drift import compare_layers
    from sit_deploy.validation.validate import check_golden

    limits = {"--max-accuracy-drop": max_accuracy_drop, "--min-agreement": min_agreement}
    if data is None and any(limit is not None for limit in limits.values()):
        raise InputError("--max-accuracy-drop and --min-agreement need images with labels; pass --data DIR")
    if data is None:
        refuse_options_of_data(**{name: options[name] for name in _OF_DATA})
    opened = load_bundle(bundle)
    kind = engine or opened.manifest["engine"]["kind"]
    if layers and engine not in (None, opened.manifest["engine"]["kind"]):
        raise InputError("--layers is of the bundle's own engine; leave --engine out")
    preprocessing = _preprocessing(opened, options, limits)
    compared = compare_layers(opened, kind, options["checkpoint"]) if debug else None
    with _world(data) as world:
        main = world is None or world.is_main
        if world and world.size > 1 and device is None and kind not in ON_CPU:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        shown = progress() if main else contextlib.nullcontext(lambda *_: None)
        with shown as report, load(opened, engine, threads=threads, device=device) as classifier:
            hop = check_golden(opened, classifier)
            checked = _measure(
                opened,
                classifier,
                data,
                kind,
                device,
                world,
                report,
                {**options, "preprocessing": preprocessing},
            )
            # last: a context that was profiled stays slow
            told = None
            if layers and kind not in ON_CPU:
                told = check_layers(opened.model_path, classifier, opened.golden()[0])
        if layers and kind in ON_CPU and main:
            told = time_layers(opened, threads)
    if not main:
        return
    measured = None
    if checked:
        measured = {
            **checked.accuracy.to_dict(opened.classes),
            "measured_on": kind,
            "data": checked.samples.name,
            "warning": checked.doubt.warning,
            "notes": list(checked.samples.notes),
            **_prepared(opened, preprocessing, checked.samples),
        }
    found = {
        "bundle": str(bundle),
        "engine": kind,
        "golden": hop.to_dict(),
        "accuracy": measured,
        "layers": told,
        "debug": compared.to_dict() if compared else None,
    }
    if as_json:
        emit_json(found)
    else:
        _show(found, compared)
    require([hop], "do not use this engine here")
    if checked:
        checked.require(max_accuracy_drop, min_agreement)


_OF_DATA = (*DATA_WHICH, "images", "resume", "mean", "std", "crop_pct", "interpolation", "orientation")


def _preprocessing(bundle: Any, options: dict[str, Any], limits: dict[str, Any]) -> Any:
    """Return the preprocessing that options ask for in place of the bundle's, None where they ask for none.

    Raises:
        InputError: a value out of range, or a limit with them: it is of the bundle as it is.
    """
    from sit_deploy.models.data_config import from_options, override

    said = from_options(SimpleNamespace(**options))
    if not said:
        return None
    if given := [name for name, limit in limits.items() if limit is not None]:
        raise InputError(
            f"{given[0]} is for the bundle as it is, and options of the preprocessing try another; leave one of them out, or build "
            "the bundle again with the preprocessing that is right"
        )
    return override(bundle.preprocessing(), said)


def _prepared(bundle: Any, preprocessing: Any, samples: Any) -> dict[str, Any]:
    """Return what was done to the images, who says so, and how many lie on their side all the same."""
    from sit_deploy.data.orientation import ignored_turns
    from sit_deploy.models.data_config import FIELDS

    ours, sources = bundle.preprocessing(), dict(bundle.manifest.get("preprocessing_source") or {})
    used = preprocessing or ours
    for name in FIELDS if preprocessing else ():
        attribute = "resize" if name == "crop_pct" else name
        if getattr(used, attribute) != getattr(ours, attribute):
            sources[name] = "the options, against the bundle"
    return {
        "preprocessing": used.to_dict(),
        "preprocessing_source": sources,
        "preprocessing_overridden": preprocessing is not None,
        "turned": ignored_turns(samples, used, "validate it, and build it again, with"),
    }


def _world(data: str | None) -> AbstractContextManager[World | None]:
    """Join the processes that torchrun started, where there is something to share; PyTorch is imported only then."""
    if data is None:
        return contextlib.nullcontext(None)
    from sit_deploy.processes import join_world

    return join_world("cpu")  # they exchange counts alone


def _measure(
    bundle: Any,
    classifier: Any,
    data: str | None,
    kind: str,
    device: str | None,
    world: World | None,
    report: Any,
    options: dict[str, Any],
) -> Any:
    if data is None:
        return None
    import torch

    from sit_deploy.validation.validate import check_accuracy

    on_gpu = (device or ("cpu" if kind in ON_CPU else "cuda")).startswith(
        "cuda"
    ) and torch.cuda.is_available()
    return check_accuracy(
        bundle,
        classifier,
        data,
        options["checkpoint"],
        report,
        images=options["images"],
        resume=options["resume"],
        preprocessing=options["preprocessing"],
        world=world,
        reference_device=(device or "cuda") if on_gpu else "cpu",
        **which_data(options),
    )


def _show(found: dict[str, Any], compared: LayerComparison | None) -> None:
    from sit_deploy.cli.build import accuracy_table, show_hops
    from sit_deploy.report.view import preprocessing_words

    screen = console()
    show_hops(screen, [found["golden"]], f"{found['bundle']} on {found['engine']}")
    measured = found["accuracy"]
    if measured:
        say(screen, f"Preprocessing: {literal(preprocessing_words(measured))}")
        if measured["preprocessing_overridden"]:
            say(
                screen,
                "[bold yellow]Warning:[/] both sides were measured with another preprocessing than the bundle's: these figures "
                "are not those of the bundle as it stands; build it again with the same options to keep it",
            )
        if measured["turned"]:
            say(screen, f"[bold yellow]Warning:[/] {literal(measured['turned'])}")
        screen.print(accuracy_table(measured))
        _show_differences(screen, measured)
    if found["layers"]:
        _show_layers(screen, found["layers"])
    if compared:
        _show_debug(screen, compared)


def _show_differences(screen: Console, measured: dict[str, Any]) -> None:
    """Print how near the logits are, the classes that lost most, and the images whose class changed."""
    from sit_deploy.report.view import logits_words

    say(screen, logits_words(measured))
    worst = [row for row in measured["by_class"] if row["engine"] < row["reference"]][:_SHOWN_FEW]
    if worst:
        listing = table("class", "images", "PyTorch", "engine", right=("images", "PyTorch", "engine"))
        listing.title, listing.title_justify = "Classes that lost most, images right", "left"
        for row in worst:
            listing.add_row(
                literal(row["name"]), str(row["images"]), str(row["reference"]), str(row["engine"])
            )
        screen.print(listing)
    if measured["flips"]:
        columns = ("image", "is", "PyTorch", "engine")
        listing = table(*columns, title="Surest of the images whose class changed", fold=columns)
        for flip in measured["flips"][:_SHOWN_FEW]:
            listing.add_row(
                literal(flip["image"]),
                literal(flip["label_name"]),
                literal(f"{flip['reference_name']} {flip['reference_probability']:.0%}"),
                literal(f"{flip['engine_name']} {flip['engine_probability']:.0%}"),
            )
        screen.print(listing)
    for note in measured["notes"]:
        say(screen, f"Note: {literal(note)}")
    for warning in (measured["warning"], *measured["doubts"]):
        if warning:
            say(screen, f"[bold yellow]Warning:[/] {literal(warning)}")


def _show_layers(screen: Console, told: dict[str, Any]) -> None:
    listing = table("layer", "types", "ms", "share", right=("ms", "share"), fold=("layer",))
    for row in told["layers"][:_SHOWN]:
        ms = "" if row["ms"] is None else f"{row['ms']:.4f}"
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        listing.add_row(literal(row["layer"]), literal(", ".join(row["types"])), ms, share)
    screen.print(listing)
    if told["kept"] is None:
        say(screen, f"{len(told['layers'])} layers, the profiler attached; --json has all.")
        return
    say(
        screen,
        f"{len(told['kept'])} low-precision products run in the types of the graph, {len(told['raised'])} do not, of "
        f"{len(told['untold'])} the engine does not tell.",
    )
    for node in told["raised"]:
        say(screen, f"[yellow]not in the type of the graph:[/] {literal(node)}")


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
