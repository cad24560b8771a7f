"""`sit-deploy search`: from a latency to a slimmed engine.

    latency table of the engine → schedules that keep the limit → those that stay closest to the unslimmed model, without training
    → the best few built and timed → the one that is delivered, the front of all, and the command that trains it

A search that is stopped goes on where it was, in the same folder.
"""

from __future__ import annotations

import datetime
import shlex
import time
from typing import Any

from engines.base import Progress
from engines.timing import machine
from sit_deploy.bundle import load_bundle
from sit_deploy.errors import GateError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.models.data_config import from_options
from sit_deploy.report.search_record import SCHEMA, SearchRecord
from sit_deploy.schema import require_type
from sit_deploy.search.finalists import Finalists, Timed
from sit_deploy.search.folder import SearchFolder
from sit_deploy.search.front import Explored, Limit, explore_limits, find_limit
from sit_deploy.search.request import SearchRequest
from sit_deploy.search.scored import Score, Scored, pareto_front
from sit_deploy.search.set_up import Search, plan, set_up

__all__ = ["SearchRequest", "search"]

_ATTEMPTS = 2  # at engines that keep the limit
_TEACHER = "TEACHER.safetensors"  # of random weights, which nobody trains on


def search(request: SearchRequest, progress: Progress | None = None) -> SearchRecord:
    """Search for the schedule whose engine keeps a latency and stays closest to the unslimmed model; write its folder.

    What was found is held to its limits by `SearchRecord.require`, when it is there to be looked at.

    A script that calls this needs `if __name__ == "__main__":`, for engines are timed in spawned processes.

    Args:
        request: what to search for.
        progress: as of `sit_deploy.pipeline.build.build`.

    Raises:
        InputError: bad input, or a latency that no schedule reaches.
        GateError: no schedule could be built to its tolerances, or others use the machine, so that no time says anything.
        engines.EngineError: the engine is missing, or cannot be built.
    """
    report = progress or (lambda *_: None)
    began = time.perf_counter()
    require_type(request, SearchRequest, "a search")
    request, engine = plan(request)
    with SearchFolder.open(request.output, request.force, request.tables) as folder:
        one = set_up(request, engine, folder, report)
        finalists = Finalists(request.build, request.method, engine, folder.work, one.judge, report)
        _learn(one, finalists)
        limit, explored, timed = _search(one, finalists)
        chosen = choose(timed, limit.ms)
        record = _record(one, limit, explored, timed, chosen, time.perf_counter() - began)
        folder.finish(record, chosen and chosen.bundle)
    return record


def _learn(one: Search, finalists: Finalists) -> None:
    """Build and time one schedule: what the method takes, the latency table does not know."""
    if not one.engine.probe().can_run:
        return
    schedule = one.space.middle
    for precision in one.request.precisions:
        score = one.judge(schedule, 0)
        timed = finalists.measure(
            [Scored(schedule, precision, one.tables.predict(precision, schedule), score)]
        )
        one.tables.learn(t.scored for t in timed if t.doubt is None)


def _search(one: Search, finalists: Finalists) -> tuple[Limit, Explored, list[Timed]]:
    """Return the limit, what was tried, and the best as built and timed; anew with what was learnt, where all of them miss the limit.

    A limit that is a share of the unslimmed model's time is one of the time that this took in the same rounds as the others.

    Raises:
        GateError: none could be built.
    """
    timed: dict[tuple[Schedule, str], Timed] = {}
    for _ in range(_ATTEMPTS):
        explored = explore_limits(one, find_limit(one))
        for t in finalists.measure(explored.best):
            timed[t.scored.schedule, t.scored.precision] = t
        one.tables.learn(t.scored for t in timed.values() if t.doubt is None)
        limit = find_limit(one)
        if choose(list(timed.values()), limit.ms) or any(t.doubt for t in timed.values()):
            break
    one.notes.extend(f"{name} was not built: {why}" for name, why in finalists.refused.items())
    if not timed:
        raise GateError(
            f"none of the {len(explored.best)} schedules found could be built: {next(iter(finalists.refused.values()))}"
        )
    return limit, explored, list(timed.values())


def choose(timed: list[Timed], limit_ms: float) -> Timed | None:
    """Return the closest to the unslimmed model of those that keep the limit: as measured, where the engine runs here."""
    keeping = [one for one in timed if one.doubt is None and one.scored.ms <= limit_ms]
    return min(keeping, key=lambda one: (one.scored.divergence, one.scored.ms), default=None)


def _record(
    one: Search, limit: Limit, explored: Explored, timed: list[Timed], chosen: Timed | None, seconds: float
) -> SearchRecord:
    """Return what is written of a search."""
    request, build = one.request, one.request.build
    measured = {(t.scored.schedule, t.scored.precision): t for t in timed}
    known = {(s.schedule, s.precision): s for s in explored.all} | {
        key: t.scored for key, t in measured.items()
    }
    front = pareto_front(known.values())
    unslimmed = dict(limit.unslimmed_ms)
    unslimmed |= {t.scored.precision: t.scored.ms for t in timed if t.scored.schedule == one.space.unslimmed}
    notes = list(dict.fromkeys((*one.notes, *one.images.notes, *_advice(one, timed, chosen, limit))))
    machine_here = machine()
    return SearchRecord.from_dict(
        {
            "schema": SCHEMA,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": one.loaded.name,
            "engine": one.tables.engine_words,
            "where": one.tables.where or machine_here.cpu_model,
            "batch_size": build.usual_batch,
            "threads": build.threads,
            "limit_ms": limit.ms,
            "asked": request.asked,
            "method": request.method,
            "max_accuracy_drop": request.max_accuracy_drop,
            "unsound": one.unsound,
            "images": one.images.words,
            "unslimmed_ms": unslimmed,
            "unslimmed_top1": one.judge.own.top1,
            "points": [
                {
                    **_point(scored, measured.get(key), scored in front, chosen),
                    "student_ms": one.tables.predict_student(scored.precision, scored.schedule),
                }
                for key, scored in known.items()
            ],
            "tried": len({schedule for schedule, _ in one.judge.kept}),
            "finished": explored.finished,
            "seconds": seconds,
            "commands": _commands(one, chosen.scored) if chosen else {},
            "notes": notes,
            "bundle": load_bundle(chosen.bundle).manifest.digest if chosen else None,
        }
    )


def _point(scored: Scored, timed: Timed | None, on_front: bool, chosen: Timed | None) -> dict[str, Any]:
    mine = timed is not None and timed is chosen
    measured = {}
    if timed is not None and scored.measured_ms is not None:
        measured = {
            "measured_ms": scored.measured_ms,
            "low_ms": timed.low_ms,
            "high_ms": timed.high_ms,
            "engine_score": _score(scored.engine_score),
            "doubt": timed.doubt,
        }
    return {
        "stages": list(scored.schedule.stage_blocks),
        "kept": list(scored.schedule.kept),
        "precision": scored.precision,
        "predicted_ms": scored.predicted_ms,
        "score": _score(scored.score),
        "front": on_front,
        "chosen": mine,
        **measured,
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "divergence": score.divergence,
        "agreement": score.agreement,
        "images": score.images,
        "top1": score.top1,
    }


def _advice(one: Search, timed: list[Timed], chosen: Timed | None, limit: Limit) -> list[str]:
    """Return what else the user should know of the choice."""
    advice = []
    doubts = [t.doubt for t in timed if t.doubt]
    if not one.engine.probe().can_run:
        advice.append(
            f"{one.engine.title} does not run here: latencies are those of the table, nothing was timed, and closeness and accuracy are those of the slimmed model "
            "in PyTorch, without what the engine rounds; bench and validate the bundle where it runs"
        )
    if doubts:
        advice.append(
            f"{len(doubts)} of the engines could not be timed here now ({doubts[0]}); close other programs and search again, with --force"
        )
    if chosen is None and not doubts:
        nearest = min(timed, key=lambda t: t.scored.ms)
        advice.append(
            f"every engine that was built is slower than the table foretold: the nearest, {nearest.scored.schedule.name}, takes "
            f"{nearest.scored.ms:.3g} ms; ask for {0.95 * limit.ms**2 / nearest.scored.ms:.3g} ms, which leaves that much room"
        )
    return advice


def _commands(one: Search, scored: Scored) -> dict[str, str]:
    """Return the commands that go on from a choice: with the same weights, image size and preprocessing.

    Paths are as they were given: the page goes to others too.
    """
    build, schedule = one.request.build, scored.schedule
    if len(schedule.stage_blocks) == 1:
        return {}
    weights = build.fetched_from or build.checkpoint or _TEACHER
    options = {
        "--stages": ",".join(map(str, schedule.stage_blocks)),
        "--kept": ",".join(map(str, schedule.kept)),
        "--checkpoint-key": build.checkpoint_key,
        "--image-size": one.loaded.model.img_size[0],
        **from_options(build).options(),
    }
    more = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    model = ["--model", build.config.name]
    # the images of --data chose the schedule: what is trained on them too is measured by nothing any more
    heads = ["--num-classes", str(build.num_classes)] if build.num_classes and build.checkpoint else []
    slim = ["slim", *model, "--checkpoint", str(weights), *more, *heads, *([] if build.ema else ["--no-ema"])]
    found = {
        "Fit it in two minutes, to images without labels": f"{_line(slim)} --images DIR -o student.safetensors"
    }
    if build.ema:  # train has no such option
        train = ["train", *model, "--teacher", str(weights), *more]
        found["Train it by FRD"] = f"{_line(train)} --data DIR -o runs/student"
    return found


def _line(words: list[str]) -> str:
    return shlex.join(["sit-deploy", *words])
