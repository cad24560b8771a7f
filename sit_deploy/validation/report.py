"""`sit-deploy report`: bundles measured on this machine, judged beside earlier reports, and written as pages."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import Progress
from engines.timing import TimingOptions
from sit_deploy import limits
from sit_deploy.bundle import Bundle
from sit_deploy.calls import takes_options
from sit_deploy.errors import InputError
from sit_deploy.files import check_output, write_whole
from sit_deploy.outputs import can_be_reported, listing
from sit_deploy.report.check_record import find_elsewhere
from sit_deploy.report.page import render_evidence
from sit_deploy.report.read import read_build_report, require_comparable, require_same_classes
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import JudgedBundle, Limits, judge
from sit_deploy.schema import require_type
from sit_deploy.validation.evidence import gather
from sit_deploy.validation.labelled_options import LabelledOptions
from sit_deploy.validation.reference import TeacherSource
from sit_deploy.validation.report_sources import open_sources

_FORMS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}


@dataclass(frozen=True)
class ReportRequest(LabelledOptions):
    """What to report on; the fields are the options of `sit-deploy report`, and those of `LabelledOptions`.

    Attributes:
        sources: bundles, folders of bundles, those that `sit-deploy search` wrote, and the JSON of earlier reports.
        outputs: files to write: .html, .md or .json; none for the result alone.
        teacher: the teacher's checkpoint, or a bundle of it.
        teacher_name: of a teacher's checkpoint without a model card.
        checkpoint: the weights, where they moved since the build.
        max_accuracy_drop: points of top-1 that the engine may lose against the student; 1 where nobody says.
        min_agreement: percent of the images that must get the same class.
        max_student_drop: points that the student may lose against its teacher; 3 where nobody says.
        rounds: turns of each stage at being timed; 0 times nothing.
        seconds: length of a turn.
        threads: CPU threads of every side; those that each bundle was built for by default.
        device: where both sides run; where the engine is for by default.
        gate: `Report.require` asks for "Ship it", with limits or without.
        force: replace files that are there.
        measured: what check.py of a folder of `package python` wrote about these bundles, on other machines.
    """

    sources: tuple[Path, ...]
    outputs: tuple[Path, ...] = (Path("report.html"),)
    teacher: Path | None = None
    teacher_name: str | None = None
    checkpoint: Path | None = None
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    max_student_drop: float | None = None
    rounds: int = 5
    seconds: float = 1.0
    threads: int | None = None
    device: str | None = None
    gate: bool = False
    force: bool = False
    measured: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sources", "outputs", "measured"):
            if isinstance(getattr(self, name), str | os.PathLike):
                object.__setattr__(self, name, (getattr(self, name),))
        super().__post_init__()

    @property
    def limits(self) -> Limits:
        """What may be lost."""
        return Limits(self.max_accuracy_drop, self.min_agreement, self.max_student_drop)

    @property
    def timing(self) -> TimingOptions:
        """How the stages are timed."""
        return TimingOptions(
            rounds=self.rounds, seconds=self.seconds, threads=self.threads, device=self.device
        )

    def check(self) -> None:
        """Refuse, before any work, files that cannot be written.

        Raises:
            InputError: a file of no known form, or one that is there already; a number out of range.
        """
        if not self.sources:
            raise InputError(
                "there is nothing to report on; name a bundle, a folder of bundles, or an earlier report"
            )
        limits.check_ranges(
            self,
            images=(1, limits.IMAGES),
            max_damaged=(0, limits.IMAGES),
            max_accuracy_drop=(0, 100),
            min_agreement=(0, 100),
            max_student_drop=(0, 100),
            rounds=(0, limits.ROUNDS),
            seconds=(1e-9, limits.SECONDS),
            threads=(1, limits.THREADS),
        )
        for path in self.outputs:
            if path.suffix.lower() not in _FORMS:
                raise InputError(
                    f"output {path} must end in .html, .md or .json; pass for example -o report.html"
                )
            check_output(path, self.force)


@dataclass(frozen=True)
class Report:
    """Bundles with what was measured of them and what it comes to, those of earlier reports first.

    Attributes:
        bundles: measured and judged.
        files: that were written.
        limits: that they were judged by.
        gate: whether anything but "Ship it" is an error, with limits or without.
    """

    bundles: tuple[JudgedBundle, ...]
    files: tuple[Path, ...]
    limits: Limits
    gate: bool = False

    def require(self) -> None:
        """Hold every bundle to the limits, where any was set, or to "Ship it", where that was asked for.

        Raises:
            GateError: names the first bundle that is not to be shipped, and why.
        """
        if self.limits.given or self.gate:
            for bundle in self.bundles:
                bundle.require()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        rows = [bundle.to_dict() for bundle in self.bundles]
        return {"bundles": rows, "reports": [str(path) for path in self.files]}


@takes_options(ReportRequest, progress=lambda shown: shown.step, warn=lambda shown: shown.warn)
def write_report(
    request: ReportRequest,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Report:
    """Measure bundles, judge them, and write the pages.

    Teacher, student, deploy form, ONNX, precision and engine see the same images in one pass and are timed turn about, each in
    a process of its own: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        request: what to report on.
        progress: called with a step, how much of it is done, and of how much.
        warn: called with what should be looked at before the work goes on.

    Raises:
        InputError: a file that cannot be written, a source that is neither bundle nor report, images or weights that do not fit.
        engines.EngineError: an engine that does not run here though it should.
    """
    from sit_deploy.data.ignored_orientation import ignored_orientation_note

    require_type(request, ReportRequest, "a report")
    request.check()
    sources = open_sources(request.sources)
    bundles, measured = sources.bundles, sources.measured
    for note in sources.notes if warn else ():
        warn(note)
    for bundle in bundles:
        _check_outputs(bundle, request)
    elsewhere = _elsewhere(request.measured, bundles)
    request.refuse_without_data()
    if request.max_student_drop is not None and bundles and (request.data is None or request.teacher is None):
        raise InputError(
            "--max-student-drop needs the teacher and images with labels; pass --teacher and --data"
        )
    builds = [(row.bundle, row.build) for row in measured]
    require_same_classes([*builds, *((str(bundle.path), read_build_report(bundle)) for bundle in bundles)])
    for bundle in bundles:

        def show(text: str, done: int, total: int, name: str = sources.name(bundle)) -> None:
            if progress:
                progress(f"{name}: {text}", done, total)

        samples = request.open_for(bundle)
        note = ignored_orientation_note(samples or [], bundle.preprocessing(), "build it again with")
        if note and warn:
            warn(note)
        evidence = gather(
            bundle,
            samples,
            teacher=TeacherSource(request.teacher, request.teacher_name) if request.teacher else None,
            checkpoint=request.checkpoint,
            timing=request.timing,
            progress=show,
        )
        more: dict[str, Any] = {"name": sources.name(bundle)}
        if rows := elsewhere.get(bundle.manifest.digest):
            more["elsewhere"] = rows
        if found := sources.searches.get(bundle.path):
            more["search"] = found.to_dict()
        measured.append(Evidence.from_dict({**evidence.to_dict(), **more}))
    require_comparable(measured)
    judged = tuple(JudgedBundle(evidence, judge(evidence, request.limits)) for evidence in measured)
    for path in request.outputs:
        write_whole(path, render_evidence(judged, _FORMS[path.suffix.lower()]))
    return Report(judged, request.outputs, request.limits, request.gate)


def _check_outputs(bundle: Bundle, request: ReportRequest) -> None:
    """Refuse what is not told of a bundle without logits.

    Raises:
        InputError: patches alone, which have no neighbours; a limit for, or a teacher of, a model that classifies.
    """
    if bundle.manifest.has_logits:
        return
    names = [one.name for one in bundle.outputs]
    if not can_be_reported(names):
        raise InputError(
            f"{bundle.path} gives patches alone, and a report compares images by one vector each; build it with --outputs features,patches"
        )
    if request.teacher is not None or request.max_student_drop is not None:
        option = "--teacher" if request.teacher is not None else "--max-student-drop"
        raise InputError(
            f"{option} is for bundles that classify, and {bundle.path} gives {listing(names)}; leave it out, or build it with --outputs "
            f"logits,{','.join(names)}"
        )


def _elsewhere(paths: tuple[Path, ...], bundles: list[Bundle]) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured of the bundles on other machines, by their digests."""
    if not paths:
        return {}
    if not bundles:
        raise InputError("--measured adds to bundles that are measured here; name the bundle that it is of")
    known = [(bundle.manifest.digest, bundle.path.resolve().name, str(bundle.path)) for bundle in bundles]
    return find_elsewhere(paths, known)
