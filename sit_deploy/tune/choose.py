"""The decision: which of the measured plans is built, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sit_deploy.tune.measured import Candidate, Measured, is_tie, most_are_noise, pareto_front
from sit_deploy.tune.search import Found


class Verdict(Enum):
    """What came of a search."""

    PLAN = "plan"  # the fastest that keeps the limit
    FLOAT = "float"  # one does, and a float engine is faster
    NONE = "none"  # no plan in 8 bits keeps it
    NOISE = "noise"  # the machine is too busy to tell
    NO_TIME = "no time"  # the seconds were used up before the usual plan was measured


@dataclass(frozen=True)
class Choice:
    """What is to be built.

    Attributes:
        verdict: what came of the search.
        plan: the best in 8 bits that keeps the limit; None where none does, or nothing can be told.
        tie: what is as fast as it and less accurate, so that accuracy decided.
        best_float: the fastest float engine that keeps the limit; None where none was measured.
        missed: the fastest in 8 bits that is faster than `plan` and misses the limit, where there is one.
    """

    verdict: Verdict
    plan: Measured | None = None
    tie: Measured | None = None
    best_float: Measured | None = None
    missed: Measured | None = None


def choose(found: Found, usual: Candidate, keeps: Callable[[Measured], bool]) -> Choice:
    """Return the fastest plan that keeps the limit; of those that are as fast as it, the most accurate.

    Args:
        found: what was measured.
        usual: the plan that is built where nothing is tuned: without it there is nothing to be better than.
        keeps: whether one keeps the limit. It is asked of the fastest first, and only of those on the front: accuracy takes long.
    """
    before = found.of(usual)
    if before is None:
        return Choice(Verdict.NO_TIME)
    if not before.timing.usable or most_are_noise(found.measured):
        return Choice(Verdict.NOISE)
    floats = [one for one in found.measured if one.candidate.is_float]
    best_float = next(filter(keeps, pareto_front(floats)), None)
    low = [one for one in found.measured if not one.candidate.is_float]
    front = pareto_front(low)
    # single layers were taken back for accuracy, which the logits' error need not show
    front += [one for one in low if one.candidate.high and one.usable and one not in front]
    front.sort(key=lambda one: -one.timing.ratio)
    fastest = next(filter(keeps, front), None)
    if fastest is None:
        return Choice(Verdict.NONE, best_float=best_float, missed=front[0] if front else None)
    missed = front[0] if fastest is not front[0] else None
    tied = sorted((one for one in front if is_tie(one, fastest)), key=lambda one: one.error.power)
    plan = next(one for one in tied if one is fastest or keeps(one))
    tie = None if plan is fastest else fastest
    beaten = best_float is not None and best_float.cost <= plan.cost
    return Choice(Verdict.FLOAT if beaten else Verdict.PLAN, plan, tie, best_float, missed)
