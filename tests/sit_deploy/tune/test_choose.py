"""The decision, on measures that are made up: limits, ties, noise, and plans slower than float."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sit_deploy.tune.choose import Choice, Verdict, choose
from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing, is_tie, most_are_noise
from sit_deploy.tune.search import Found

USUAL = Candidate(frozenset({"fc1"}))


def plan(*groups: str, rest: str = "fp32") -> Candidate:
    return Candidate(frozenset(groups), rest)


def measured(
    candidate: Candidate,
    ratio: float,
    db: float | None,
    spread: float = 0.01,
    noise: str | None = None,
    tolerated: bool = True,
) -> Measured:
    timing = Timing(ratio, ratio * (1 - spread), ratio * (1 + spread), 10 / ratio, noise)
    return Measured(candidate, timing, None if db is None else LogitsError(10 ** (-db / 10), tolerated))


def decide(
    *them: Measured, keeps: Callable[[Measured], bool] = lambda one: one.error.sqnr_db >= 34
) -> Choice:
    return choose(Found(them, True, 1.0), USUAL, keeps)


FLOAT = measured(Candidate(), 1.0, 120)
BEFORE = measured(USUAL, 1.5, 35)


def test_the_fastest_that_keeps_the_limit() -> None:
    fast, faster = measured(plan("fc1", "stem"), 2.0, 34.1), measured(plan("fc1", "head"), 2.5, 30)
    choice = decide(FLOAT, BEFORE, fast, faster)
    assert (choice.verdict, choice.plan, choice.tie, choice.missed) == (Verdict.PLAN, fast, None, faster)
    assert choice.best_float is FLOAT


def test_a_limit_that_all_keep_and_one_that_nobody_keeps() -> None:
    fast = measured(plan("fc1", "stem"), 2.0, 30)
    assert decide(FLOAT, BEFORE, fast, keeps=lambda _: True).plan is fast
    none = decide(FLOAT, BEFORE, fast, keeps=lambda one: one.candidate.is_float)
    assert (none.verdict, none.plan, none.best_float, none.missed) == (Verdict.NONE, None, FLOAT, fast)


def test_of_a_tie_the_more_accurate_is_taken() -> None:
    """Within 3 %, or with quartiles on both sides of 1."""
    near = measured(plan("fc1", "stem"), 1.54, 34.5)
    assert (decide(FLOAT, BEFORE, near).plan, decide(FLOAT, BEFORE, near).tie) == (BEFORE, near)
    wide = measured(plan("fc1", "stem"), 1.65, 34.5, spread=0.1)
    assert decide(FLOAT, BEFORE, wide).plan is BEFORE
    clear = measured(plan("fc1", "stem"), 1.65, 34.5)
    assert (decide(FLOAT, BEFORE, clear).plan, decide(FLOAT, BEFORE, clear).tie) == (clear, None)


def test_ties() -> None:
    assert is_tie(BEFORE, BEFORE) and is_tie(FLOAT, measured(plan("a"), 1.03, 1))
    assert not is_tie(FLOAT, measured(plan("a"), 1.05, 1)) and not is_tie(measured(plan("a"), 1.05, 1), FLOAT)


def test_ties_are_with_the_fastest_alone() -> None:
    """1.50 ties with 1.54 and 1.54 with 1.58, and what is 5 % slower than the fastest is none of them."""
    middle, fastest = measured(plan("fc1", "stem"), 1.54, 34.6), measured(plan("fc1", "head"), 1.58, 34.2)
    assert decide(FLOAT, BEFORE, middle, fastest).plan is middle


def test_a_plan_slower_than_float() -> None:
    slow = measured(USUAL, 0.9, 35)
    assert (decide(FLOAT, slow).verdict, decide(FLOAT, slow).plan) == (Verdict.FLOAT, slow)
    bf16 = measured(Candidate(rest="bf16"), 2.1, 39)
    choice = decide(FLOAT, BEFORE, bf16)
    assert (choice.verdict, choice.best_float) == (Verdict.FLOAT, bf16)
    bad = measured(Candidate(rest="bf16"), 2.1, 20)  # which misses the limit
    assert (decide(FLOAT, BEFORE, bad).verdict, decide(FLOAT, BEFORE, bad).best_float) == (
        Verdict.PLAN,
        FLOAT,
    )


def test_noise_decides_nothing() -> None:
    lucky = measured(plan("fc1", "stem"), 9.0, 35, noise="others took the CPUs")
    assert decide(FLOAT, BEFORE, lucky).plan is BEFORE
    busy = measured(USUAL, 1.5, 35, noise="others took the CPUs")
    assert decide(FLOAT, busy, measured(plan("fc1", "stem"), 2.0, 35)).verdict is Verdict.NOISE
    many = [measured(plan(str(i)), 1.5, 35, noise="others took the CPUs") for i in range(2)]
    assert decide(FLOAT, BEFORE, *many).verdict is Verdict.NOISE
    assert most_are_noise(many) and not most_are_noise([]) and not most_are_noise([FLOAT, BEFORE, many[0]])


def test_without_the_usual_plan_there_is_nothing_to_compare_with() -> None:
    assert decide().verdict is decide(FLOAT).verdict is Verdict.NO_TIME


def test_logits_out_of_tolerance_are_never_chosen() -> None:
    wild = measured(plan("fc1", "stem"), 3.0, 36, tolerated=False)
    assert decide(FLOAT, BEFORE, wild).plan is BEFORE
    assert decide(FLOAT, measured(USUAL, 1.5, 35, tolerated=False)).verdict is Verdict.NONE


def test_accuracy_is_asked_of_as_few_as_can_be() -> None:
    asked: list[float] = []

    def keeps(one: Measured) -> bool:
        asked.append(one.timing.ratio)
        return one.timing.ratio < 2.2

    beaten = measured(plan("fc1", "head"), 1.9, 31)  # no better than one that is faster too
    fast, slow = measured(plan("fc1", "stem"), 2.5, 30), measured(plan("stem"), 1.2, 38)
    chosen = measured(plan("qkv", "stem"), 2.0, 32)
    assert decide(FLOAT, BEFORE, fast, slow, chosen, beaten, keeps=keeps).plan is chosen
    assert asked == [1.0, 2.5, 2.0]


@pytest.mark.parametrize("ratio", [0.0, float("inf"), float("nan")])
def test_a_time_that_is_no_number_is_not_usable(ratio: float) -> None:
    assert not Timing(ratio, ratio, ratio, 1.0).usable
