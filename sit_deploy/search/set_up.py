"""The beginning of a search: what is refused at once, the engine, the model, the images and the latency tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import engines
from engines.base import Progress
from engines.install import pip_install
from sit_deploy import __version__
from sit_deploy.data.splits import check_training_images
from sit_deploy.errors import InputError
from sit_deploy.hashes import digest
from sit_deploy.pipeline.build import fit_to_engine
from sit_deploy.pipeline.float_graph import load_request
from sit_deploy.pipeline.request import AUTO as AUTO_GROUPS
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_given_files, check_request
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import EIGHT_BITS, FLOATS
from sit_deploy.search.folder import SearchFolder, check_folder
from sit_deploy.search.images import SearchImages, open_images
from sit_deploy.search.judge import Judge
from sit_deploy.search.request import AUTO, SearchRequest, in_precision
from sit_deploy.search.schedule import Space
from sit_deploy.search.soundness import soundness
from sit_deploy.search.state import ScoreFile
from sit_deploy.search.tables import Tables

if TYPE_CHECKING:
    from sit_deploy.models.load import LoadedModel
    from sit_deploy.preprocessing import Preprocessing

JUDGING = 0.5  # share of the seconds that goes into comparing models


@dataclass(frozen=True)
class Search:
    """A search while it goes on.

    Attributes:
        request: with its weights here, and the precisions that are searched.
        engine: that is timed.
        loaded: the unslimmed model.
        images: to judge on.
        space: of schedules.
        judge: of slimmed models.
        tables: of latencies.
        folder: for everything.
        scores: the file of what was judged.
        report: how it shows progress.
        notes: what to tell the user.
        unsound: why no limit of accuracy can be judged on these images; None where one can.
    """

    request: SearchRequest
    engine: engines.Engine
    loaded: LoadedModel
    images: SearchImages
    space: Space
    judge: Judge
    tables: Tables
    folder: SearchFolder
    scores: ScoreFile
    report: Progress
    notes: list[str]
    unsound: str | None = None


def plan(request: SearchRequest) -> tuple[SearchRequest, engines.Engine]:
    """Refuse what can be refused at once; return the request with its weights here, and the engine."""
    check_folder(request.output, request.force)
    asked = request.of_model()
    check_given_files(asked)
    if request.unlabelled_folder:
        check_training_images(request.unlabelled_folder)
    engine = _engine(request)
    named = asked.named()
    if (
        named.awaits_weights and named.model
    ):  # what can be refused without them is refused before they are fetched
        _fit(request, named, engine)
    build = named.completed()
    build, precisions = _fit(request, build, engine)
    return replace(request, build=build, precisions=precisions), engine


def _fit(
    request: SearchRequest, build: BuildRequest, engine: engines.Engine
) -> tuple[BuildRequest, tuple[str, ...]]:
    """Return the request of the unslimmed model with its engine, and the precisions to search; refuse what no build will take."""
    if len(build.config.stage_blocks) > 1:
        raise InputError(
            f"{build.config.name} slims already: its schedule is what is searched for; take the unslimmed "
            f"{build.config.teacher or 'model'} and its weights"
        )
    precisions = _precisions(request, engine, build.precision)
    # by name: what auto means for a build need not run here
    build = replace(build, engine=engine.kind)
    _check_builds(build, request.method, precisions, engine)
    return build, precisions


def _check_builds(
    build: BuildRequest, method: str, precisions: tuple[str, ...], engine: engines.Engine
) -> None:
    """Refuse at once what the builds at the end of the search would refuse, with their own checks.

    Raises:
        InputError, engines.EngineError: as a build.
    """
    if build.quantize == AUTO_GROUPS:
        raise InputError(
            "--quantize auto would choose other layers for every schedule, and no latency table could foretell their time; leave it out, or "
            "name groups, as --quantize default"
        )
    if not any(precision in EIGHT_BITS for precision in precisions):
        check_request(
            replace(build, precision=precisions[0])
        )  # options for 8 bits, which nothing is built in
    half = build.config.depth // 2
    slimmed = replace(build, stages=(half, build.config.depth - half), method=method)
    for precision in precisions:
        for one in (build, slimmed) if half else (build,):
            one = in_precision(one, precision)
            check_request(one)
            fit_to_engine(one, engine)
    check_given_files(build)


def _engine(request: SearchRequest) -> engines.Engine:
    """Return the engine asked for; by default the first that runs here, as it is timed."""
    if request.build.engine != "auto":
        return engines.select(request.build.engine)[0]
    for kind in engines.KINDS:
        answer = engines.get(kind).probe()
        if answer.can_run and answer.can_build:
            return engines.get(kind)
    raise InputError(f"no engine runs here that could be timed; run {pip_install('onnxruntime')}")


def _precisions(request: SearchRequest, engine: engines.Engine, given: str) -> tuple[str, ...]:
    """Return the precisions to search: the one given, or all that the engine has here, where they can be calibrated."""
    if request.precisions != (AUTO,):
        return request.precisions or (given,)
    found = [one for one in (*FLOATS, "int8") if one in engine.precisions and not engine.lacks(one)]
    if engine.on_cpu:  # that store 16 bits and compute in 32: no faster, and less exact
        found = [one for one in found if one != "fp16"]
    if request.data is None and request.build.checkpoint:
        found = [one for one in found if one not in EIGHT_BITS]
    return tuple(found)


def set_up(request: SearchRequest, engine: engines.Engine, folder: SearchFolder, report: Progress) -> Search:
    """Load the model and the images, judge the unslimmed model, and measure the latency tables that are missing."""
    work = Work(request.build, report, engine=engine)
    with work.step(f"Loading {request.build.model}"):
        loaded, choice, _ = load_request(work)
    with work.step("Preparing images"):
        images = open_images(request.unlabelled_folder, work.samples, choice.preprocessing, work.damaged)
    model = loaded.model
    classes = getattr(model, "num_classes", 0)
    if classes < 2:  # the probability of one class is 1, whatever the model
        found = "one class alone" if classes else "no classifier"
        raise InputError(
            f"{loaded.name} has {found}, and schedules are compared by the probabilities of classes; give one that has two or more"
        )
    from sit_deploy.models.reduced import reduced_by

    space = Space.of(model.depth, model.grid_size[0] * model.grid_size[1], request.most_stages)
    make = reduced_by(model, request.method)
    judge = Judge(
        lambda schedule: make(schedule.stage_blocks, schedule.kept),
        space.unslimmed,
        images.pixels,
        choice.preprocessing,
        images.labels,
    )
    scores = ScoreFile(folder.scores, _key(request, loaded, images, choice.preprocessing))
    judge.counts, judge.kept = scores.counts, scores.scores
    with work.step("Running the unslimmed model"):
        judge.prepare(JUDGING * request.seconds)
    scores.save(judge.counts, judge.kept)  # which says whose folder it is, however soon the search is stopped
    sound = soundness(*judge.reference, work.samples, loaded, request.build)
    tables = Tables(request, loaded, engine, folder, report)
    return Search(
        request,
        engine,
        loaded,
        images,
        space,
        judge,
        tables,
        folder,
        scores,
        report,
        [*work.notes, *([work.damaged.words] if work.damaged.words else []), *sound.notes, *tables.notes],
        sound.unsound,
    )


def _key(
    request: SearchRequest, loaded: LoadedModel, images: SearchImages, preprocessing: Preprocessing
) -> str:
    """Return what scores hold for."""
    weights = loaded.checkpoint.sha256 if loaded.checkpoint else "random"
    fields = {
        "model": loaded.name,
        "size": list(loaded.model.img_size),
        "classes": loaded.model.num_classes,
        "preprocessing": repr(preprocessing),
        "tool": __version__,
        "weights": weights,
        "key": request.build.checkpoint_key,
        "ema": request.build.ema,
        "method": request.method,
        "images": images.digest,
    }
    return digest(fields)
