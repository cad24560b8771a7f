"""The search at the limit that was asked for, and at a few beside it, of which the front is made."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.explore import LEVELS, LimitError, Tried, explore
from sit_deploy.search.scored import Scored, pareto_front
from sit_deploy.search.set_up import JUDGING, Search

_FIRST, _FEW = 48, 12  # schedules that are tried first: at the limit asked for, and at each other
_MAIN = 0.6  # share of the judging that goes to the limit asked for
_BESIDE = 4  # other limits
_REST = 0.1  # share of the judging that is left for the front on all images
_NEAR = 1.1  # times the limit that another must be off
_SAVED_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Limit:
    """How fast the engine is to be.

    Attributes:
        ms: a batch.
        unslimmed_ms: of the unslimmed model by precision, predicted.
    """

    ms: float
    unslimmed_ms: dict[str, float]


def find_limit(one: Search) -> Limit:
    """Return the limit in milliseconds.

    Raises:
        InputError: a latency that no schedule reaches in any precision.
    """
    request = one.request
    unslimmed = {p: one.tables.predict(p, one.space.unslimmed) for p in request.precisions}
    if request.latency is not None:
        return Limit(request.latency, unslimmed)
    return Limit(unslimmed[request.basis] / request.speedup, unslimmed)


@dataclass(frozen=True)
class Explored:
    """What was tried.

    Attributes:
        best: schedules to be built, the best first.
        all: whatever was tried.
        finished: whether the time sufficed.
    """

    best: list[Scored]
    all: list[Scored]
    finished: bool


def explore_limits(one: Search, limit: Limit) -> Explored:
    """Try schedules at the limit, and fewer at limits beside it, for the front."""
    request, tables = one.request, one.tables
    judging = JUDGING * request.seconds
    began = time.perf_counter()
    unslimmed = [
        Scored(one.space.unslimmed, precision, ms, one.judge.own)
        for precision, ms in limit.unslimmed_ms.items()
    ]
    within = [scored for scored in unslimmed if scored.predicted_ms <= limit.ms]
    best, everything, finished, refused = [*within], {}, True, []

    def try_at(precision: str, ms: float, until: float, first: int) -> Tried:
        saved = [time.perf_counter()]

        def may_go_on() -> bool:
            now = time.perf_counter()
            one.report(
                f"Trying schedules for {ms:.3g} ms at {precision}",
                int(min(now - began, until) * 10),
                int(until * 10),
            )
            if now - saved[0] > _SAVED_EVERY:
                one.scores.save(one.judge.counts, one.judge.kept)
                saved[0] = now
            return now - began < until

        return explore(
            one.space,
            lambda s: tables.predict(precision, s),
            one.judge,
            ms,
            may_go_on=may_go_on,
            first=first,
            seed=request.seed,
        )

    def keep(precision: str, tried: Tried) -> list[Scored]:
        rows = {
            s: Scored(s, precision, tables.predict(precision, s), score) for s, score in tried.all.items()
        }
        everything.update({(precision, s): row for s, row in rows.items()})
        return [rows[schedule] for schedule in tried.best]

    count = len(request.precisions)
    for i, precision in enumerate(request.precisions, 1):
        if limit.unslimmed_ms[precision] <= limit.ms:
            continue
        try:
            tried = try_at(precision, limit.ms, judging * _MAIN * i / count, _FIRST)
        except LimitError as error:
            refused.append((precision, error))
            continue
        best += keep(precision, tried)
        finished = finished and tried.finished
    if not best:
        raise _unreachable(one, limit, refused)
    beside = [(p, ms) for p in request.precisions for ms in _other_limits(one, p, limit)]
    for i, (precision, ms) in enumerate(beside, 1):
        share = _MAIN + (1 - _MAIN) * i / len(beside)
        keep(precision, try_at(precision, ms, judging * (share - _REST), _FEW))
    rows = _on_all_images(one, everything, began)
    one.scores.save(one.judge.counts, one.judge.kept)
    one.report("Trying schedules", 1, 1)
    best.sort(key=lambda scored: scored.divergence)
    return Explored(best[: request.finalists], [*unslimmed, *rows], finished)


def _on_all_images(one: Search, everything: dict[tuple[str, Schedule], Scored], began: float) -> list[Scored]:
    """Return those that were judged on all images, after what may be on the front was: few images flatter many of many schedules."""
    last = LEVELS - 1
    while time.perf_counter() - began < JUDGING * one.request.seconds:
        front = [
            scored
            for scored in pareto_front(everything.values())
            if (scored.schedule, last) not in one.judge.kept
        ]
        if not front:
            break
        score = one.judge(front[0].schedule, last)
        for key, scored in everything.items():
            if key[1] == front[0].schedule:
                everything[key] = replace(scored, score=score)
    judged = [scored for scored in everything.values() if (scored.schedule, last) in one.judge.kept]
    return judged or list(everything.values())


def _other_limits(one: Search, precision: str, limit: Limit) -> list[float]:
    """Return limits between the fastest schedule and the unslimmed model, of equal factors, but for one that is near the limit asked for.

    None where every schedule takes longer than the unslimmed model, as in a model so small that slimming costs more than it saves.
    """
    slowest = limit.unslimmed_ms[precision]
    fastest = min(
        one.tables.predict(precision, schedule) for schedule in one.space.schedules(one.request.seed)
    )
    if fastest >= slowest:
        return []
    steps = [fastest * (slowest / fastest) ** ((i + 0.5) / _BESIDE) for i in range(_BESIDE)]
    return [ms for ms in steps if not 1 / _NEAR < ms / limit.ms < _NEAR]


def _unreachable(one: Search, limit: Limit, refused: list[tuple[str, LimitError]]) -> InputError:
    """Return the error of a latency that nothing keeps, with what does come nearest and why that is so."""
    precision, error = min(refused, key=lambda one: one[1].ms)
    schedule = error.fastest
    what, ms = one.tables.largest_part(precision, schedule)
    floor = f"; {ms:.3g} ms of it are its {what}"
    return InputError(
        f"no schedule of {one.loaded.name} takes {limit.ms:.3g} ms on {one.engine.kind} here: the fastest, {schedule.name}, is predicted to take "
        f"{error.ms:.3g} ms at {precision}, and the unslimmed model {min(limit.unslimmed_ms.values()):.3g}{floor}; ask for more, take a smaller model, "
        f"or another --precision or --engine"
    )
