"""The command `sit-deploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Real,
    Whole,
    check_output,
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
    warn,
)
from sit_deploy.cli.options import DATA_WHICH, data_options, refuse_options_of_data, which_data
from sit_deploy.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from sit_deploy.bundle import Bundle
    from sit_deploy.report.types import Evidence
    from sit_deploy.report.verdict import JudgedBundle

_TIMING = ("rounds", "seconds", "threads", "device")
_FORMS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}


@click.command(
    "report",
    epilog=examples(
        "sit-deploy report sit_s-int8 --data imagenet/val --teacher lvvit_s.pth --teacher-model lvvit_s",
        "sit-deploy report bundles/ --data imagenet/val -o bundles.html -o bundles.md",
        "sit-deploy report sit_s-fp16 -o gpu.json",
        "sit-deploy report gpu.json sit_s-fp32 -o both.html",
    ),
)
@click.argument("sources", type=path_type, nargs=-1, required=True, metavar="BUNDLE-or-DIR-or-JSON...")
@click.option(
    "-o",
    "--output",
    "outputs",
    type=path_type,
    multiple=True,
    metavar="FILE",
    help="report.html, .md or .json; may repeat.  [default: report.html]",
)
@data_options
@click.option(
    "--teacher", type=path_type, metavar="FILE", help="The teacher's checkpoint, or a bundle of it."
)
@click.option(
    "--teacher-model", "teacher_name", metavar="NAME", help="Of a teacher's checkpoint without a model card."
)
@click.option(
    "--checkpoint", type=path_type, metavar="FILE", help="The weights, if they moved since the build."
)
@click.option(
    "--max-accuracy-drop",
    type=Real(0, 100),
    metavar="PTS",
    help="Top-1 that may be lost; exit status 1 if it is not kept.  [default: 1, without that]",
)
@click.option("--min-agreement", type=Real(0, 100), metavar="PCT", help="Images that must agree, likewise.")
@click.option(
    "--max-student-drop",
    type=Real(0, 100),
    metavar="PTS",
    help="Top-1 that the student may lose against its teacher, likewise.  [default: 3, without that]",
)
@click.option(
    "--rounds",
    type=Whole(limits.ROUNDS, 0),
    default=5,
    show_default=True,
    metavar="N",
    help="Turns of each hop at being timed; 0 times nothing.",
)
@click.option(
    "--seconds",
    type=Real(0, limits.SECONDS, above=True),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Length of a turn.",
)
@click.option("--threads", type=Whole(limits.THREADS, 1), metavar="N", help="CPU threads of every side.")
@device_option
@click.option("--force", is_flag=True, help="Replace files that are there.")
@json_option
def command(
    sources: tuple[Path, ...],
    outputs: tuple[Path, ...],
    data: str | None,
    images: int | None,
    max_accuracy_drop: float | None,
    min_agreement: float | None,
    max_student_drop: float | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure bundles and write one page that says whether to ship them, and why.

    Teacher, student, deploy form, ONNX, precision and engine see the same images in one pass and are timed turn about. A
    folder of bundles gives one page of all; a JSON file is an earlier report, perhaps of another machine, and is judged anew.

    The verdict is of the whole chain: what the student lost against its teacher, what the engine lost against the student,
    and whether any of them is better than guessing. A speed that the rounds do not bear out is "not measurable now", and said
    so beside "Ship it"; what 8 bits gain must be known. No limit is broken by it.
    """
    from engines.timing import TimingOptions
    from sit_deploy.data.orientation import ignored_orientation_note
    from sit_deploy.files import write_whole
    from sit_deploy.report.page import render_evidence
    from sit_deploy.report.read import require_comparable
    from sit_deploy.report.verdict import JudgedBundle, Limits, judge
    from sit_deploy.validation.checks import open_labelled_for
    from sit_deploy.validation.evidence import gather
    from sit_deploy.validation.reference import TeacherSource

    limits = Limits(max_accuracy_drop, min_agreement, max_student_drop)
    targets = _targets(outputs, force)
    bundles, measured = _open(sources)
    if data is None:
        refuse_options_of_data(**{name: options[name] for name in DATA_WHICH}, images=images)
    if max_student_drop is not None and bundles and (data is None or options["teacher"] is None):
        raise InputError(
            "--max-student-drop needs the teacher and images with labels; pass --teacher and --data"
        )
    which = which_data(options)
    options = {name: value for name, value in options.items() if name not in DATA_WHICH}
    options["timing"] = TimingOptions(**{name: options.pop(name) for name in _TIMING})
    source, name = options.pop("teacher"), options.pop("teacher_name")
    options["teacher"] = TeacherSource(source, name) if source else None
    with progress() as report:
        for bundle in bundles:

            def show(text: str, done: int, total: int, name: str = bundle.path.name) -> None:
                report(f"{name}: {text}", done, total)

            samples = open_labelled_for(bundle, data, images, **which) if data else None
            warn(ignored_orientation_note(samples or [], bundle.preprocessing(), "build it again with"))
            measured.append(gather(bundle, samples, progress=show, **options))
    require_comparable(measured)
    judged = [JudgedBundle(evidence, judge(evidence, limits)) for evidence in measured]
    for path, form in targets.items():
        write_whole(path, render_evidence(judged, form))
    if as_json:
        rows = [bundle.to_dict() for bundle in judged]
        emit_json({"bundles": rows, "reports": [str(path) for path in targets]})
    else:
        for bundle in judged:
            _show(console(), bundle)
        for path in targets:
            say(console(), f"[green]✓[/] [bold]{literal(path)}[/]")
    if limits.given:
        for bundle in judged:
            bundle.require()


def _targets(outputs: tuple[Path, ...], force: bool) -> dict[Path, str]:
    """Return the form of each file to write, all of them refused before any work if one cannot be."""
    found = {}
    for path in outputs or (Path("report.html"),):
        form = _FORMS.get(path.suffix.lower())
        if form is None:
            raise InputError(
                f"output {path} must end in .html, .md or .json; pass for example -o report.html"
            )
        check_output(path, force)
        found[path] = form
    return found


def _open(sources: tuple[Path, ...]) -> tuple[list[Bundle], list[Evidence]]:
    """Return the bundles to measure, and what earlier reports hold."""
    from sit_deploy.bundle import is_bundle, load_bundle
    from sit_deploy.report.read import read_evidence

    bundles, measured = [], []
    for source in sources:
        if source.suffix.lower() == ".json" and not source.is_dir():
            measured += read_evidence(source)
        elif source.is_dir() and not is_bundle(source):
            found = sorted(entry for entry in source.iterdir() if entry.is_dir() and is_bundle(entry))
            if not found:
                raise InputError(
                    f"{source} has no bundle in it; make one with `sit-deploy build -o {source / 'sit_s-fp16'}`"
                )
            bundles += [load_bundle(path) for path in found]
        else:
            bundles.append(load_bundle(source))
    return bundles, measured


_COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}  # of severities
_MARKS = {"good": "✓", "unsure": "?", "bad": "✗"}


def _show(screen: Console, judged: JudgedBundle) -> None:
    from sit_deploy.report.view import stages_view, verdict_view

    evidence, verdict = judged.evidence, verdict_view(judged.verdict)
    colour = _COLOURS[verdict["severity"]]
    say(screen, f"[bold]{literal(evidence.name)}[/]: [bold {colour}]{literal(verdict['headline'])}[/]")
    for severity, reason in verdict["reasons"]:
        say(screen, f" [{_COLOURS[severity]}]{_MARKS[severity]}[/] {literal(reason)}")
    for note in evidence.accuracy.notes if evidence.accuracy else ():
        say(screen, f" Note: {literal(note)}")
    shown = stages_view(evidence.ledger)
    listing = table(*shown["head"], right=tuple(shown["head"][2:]), fold=("runs on",))
    for cells in shown["rows"]:
        listing.add_row(*map(literal, cells))
    screen.print(listing)
