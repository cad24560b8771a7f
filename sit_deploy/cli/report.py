"""The command `sit-deploy report`."""

from __future__ import annotations

from pathlib import Path
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
    progress,
    quiet_option,
    say,
    show_search,
    table,
    warn,
)
from sit_deploy.cli.options import data_options

if TYPE_CHECKING:
    from rich.console import Console

    from sit_deploy.report.verdict import JudgedBundle


@click.command(
    "report",
    epilog=examples(
        "sit-deploy report sit_s-int8 --data imagenet/val --teacher lvvit_s.pth --teacher-model lvvit_s",
        "sit-deploy report bundles/ --data imagenet/val -o bundles.html -o bundles.md",
        "sit-deploy report sit_s-int8 --data imagenet/val --gate",
        "sit-deploy report found --data val",
        "sit-deploy report sit_s-fp16 -o gpu.json",
        "sit-deploy report gpu.json sit_s-fp32 -o both.html",
        "sit-deploy report sit_s-fp16 --measured check.json",
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
    "--teacher",
    type=path_type,
    metavar="FILE",
    help="The teacher's checkpoint, or hf-hub:OWNER/NAME, or a bundle of it.",
)
@click.option(
    "--teacher-model", "teacher_name", metavar="NAME", help="Of a teacher's checkpoint without a model card."
)
@click.option(
    "--checkpoint",
    type=path_type,
    metavar="FILE",
    help="The weights, or hf-hub:OWNER/NAME, if they moved since the build.",
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
@click.option("--gate", is_flag=True, help="Exit status 1 unless every bundle is to be shipped.")
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
@click.option(
    "--threads",
    type=Whole(limits.THREADS, 1),
    metavar="N",
    help="CPU threads of every side.  [default: those that the bundle was built for]",
)
@device_option
@click.option(
    "--measured",
    type=path_type,
    multiple=True,
    metavar="FILE",
    help="What check.py of `package python` wrote about the bundles elsewhere; may repeat.",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@quiet_option
@json_option
def command(outputs: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure bundles and write one page that says whether to ship them, and why.

    Teacher, student, deploy form, ONNX, precision and engine see the same images in one pass and are timed turn about. A
    folder of bundles gives one page of all, the folder of `sit-deploy search` its bundle and why it was chosen; a JSON file is an earlier report, perhaps of another machine, and is judged anew.

    The verdict is of the whole chain: what the student lost against its teacher, what the engine lost against the student,
    and whether any of them is better than guessing. A speed that the rounds do not bear out is "not measurable here now", and said
    so beside "Ship it", and breaks no limit; what 8 bits gain must be known, for limits too.

    Exit status 0 whatever the verdict, "Do not ship" too, unless --gate or a limit (--max-accuracy-drop, --min-agreement,
    --max-student-drop) is given: then 1 for anything but "Ship it". The files are written all the same.
    """
    from sit_deploy.validation.report import ReportRequest, write_report

    if outputs:
        options["outputs"] = outputs
    with progress() as show:
        report = write_report(ReportRequest(**options), show, warn)
    if as_json:
        emit_json(report.to_dict())
    else:
        for bundle in report.bundles:
            _show(console(), bundle)
        for path in report.files:
            say(console(), f"[green]✓[/] [bold]{literal(path)}[/]")
    report.require()


_COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}  # of severities
_MARKS = {"good": "✓", "unsure": "?", "bad": "✗"}


def _show(screen: Console, judged: JudgedBundle) -> None:
    from sit_deploy.report.elsewhere_text import elsewhere_view
    from sit_deploy.report.kernels_text import census_text, lowered_note
    from sit_deploy.report.search_view import found_view
    from sit_deploy.report.slimming_view import slimming_words
    from sit_deploy.report.stages_view import stages_view
    from sit_deploy.report.view import verdict_view

    evidence, verdict = judged.evidence, verdict_view(judged.verdict)
    colour = _COLOURS[verdict["severity"]]
    say(screen, f"[bold]{literal(evidence.name)}[/]: [bold {colour}]{literal(verdict['headline'])}[/]")
    for severity, reason in verdict["reasons"]:
        say(screen, f" [{_COLOURS[severity]}]{_MARKS[severity]}[/] {literal(reason)}")
    measured = evidence.accuracy or evidence.embedding
    for note in measured.notes if measured else ():
        say(screen, f" Note: {literal(note)}")
    say(screen, f"Patch tokens: {literal(slimming_words(evidence.build.model))}")
    shown = stages_view(evidence.ledger, data=evidence.embedding is not None and evidence.embedding.is_data)
    listing = table(*shown["head"], right=tuple(shown["head"][2:]), fold=("runs on",))
    for cells in shown["rows"]:
        listing.add_row(*map(literal, cells))
    screen.print(listing)
    if census := census_text(evidence.build.engine.details):
        say(screen, f"{literal(evidence.ledger.engine_stage.name)}: {literal(census)}")
    if lowered := lowered_note(evidence.build.engine.details):
        say(screen, f"{literal(evidence.ledger.engine_stage.name)}: {literal(lowered)}")
    if found := found_view(evidence):
        show_search(screen, found)
    for part in elsewhere_view(evidence.elsewhere):
        say(screen, f"[bold]{literal(part['name'])}[/]")
        if part["rows"]:
            listing = table(*part["head"], right=part["head"])
            for cells in part["rows"]:
                listing.add_row(*map(literal, cells))
            screen.print(listing)
        for note in part["notes"]:
            say(screen, f" {literal(note)}")
