"""What a tuning's decision means for the build: 8 bits that are given up, and what the user is told."""

from __future__ import annotations

from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.tuned import Tuning
from sit_deploy.pipeline.work import Work
from sit_deploy.report.tuning_text import factor_text, plan_text
from sit_deploy.tune.choose import Verdict
from sit_deploy.tune.measured import Candidate


def misses(precision: str, limit: str, instead: str) -> str:
    """Say that no plan in 8 bits keeps a limit."""
    return f"no plan in {precision} keeps {limit}; {instead} was built instead"


def require_gain(work: Work, tuning: Tuning) -> None:
    """Give up 8 bits where a limit was given and only a float engine keeps it, or one that does is faster.

    Raises:
        NoGainError: with what to build instead.
    """
    request, choice = work.request, tuning.choice
    if not request.has_limit:
        return
    instead = choice.best_float.candidate.rest if choice.best_float else "fp32"
    if choice.verdict is Verdict.NONE:
        raise NoGainError(NoGain.ACCURACY, misses(request.precision, tuning.limit, instead), instead)
    if choice.verdict is Verdict.FLOAT:
        raise NoGainError(
            NoGain.SPEED,
            f"{request.precision} is not faster than {instead} on {work.engine.kind} here "
            f"({factor_text(choice.plan.timing.ratio)} as fast as fp32, {instead} {factor_text(choice.best_float.timing.ratio)}); "
            f"{instead} was built instead",
            instead,
        )


def tell_tuning(work: Work, tuning: Tuning) -> None:
    """Tell what was decided where that is not as expected."""
    choice, default = tuning.choice, tuning.space.default
    if tuning.timings.lost is not None:
        work.note(f"timings are not kept for another build: {tuning.timings.lost}")
    if count := len(tuning.refused):
        candidate, why = next(iter(tuning.refused.items()))
        kind = "engine" if any(one.is_float for one in tuning.refused) else "plan"
        what = f"1 {kind} was left out, as it" if count == 1 else f"{count} {kind}s were left out, as they"
        first = "" if count == 1 else "; the first"
        work.note_of_8_bits(f"{what} could not be built{first}: {_words(candidate, default)}: {why}")
    require_gain(work, tuning)
    if choice.verdict is Verdict.NOISE:
        reasons = [one.timing.noise for one in tuning.found.measured if one.timing.noise]
        work.warn(
            f"the plan was not tuned: {reasons[0] if reasons else 'times differ too much'}; the default groups are in 8 bits. Close "
            "other programs and build again, or fix the plan with --quantize default"
        )
    elif choice.verdict is Verdict.NO_TIME:
        work.warn(
            "the plan was not tuned: --tune-seconds was used up before the first engine was timed; the default groups are in 8 bits. "
            "Give more seconds"
        )
    elif choice.tie is not None:
        work.note_of_8_bits(
            f"a tie: {_words(choice.plan.candidate, default)} and {_words(choice.tie.candidate, default)} are as fast as each other here "
            f"({factor_text(choice.plan.timing.ratio)} and {factor_text(choice.tie.timing.ratio)} fp32); the more accurate was taken"
        )
    if tuning.settled and not tuning.found.finished:
        work.note("--tune-seconds ended the search early; more seconds may find a faster plan")


def _words(candidate: Candidate, default: frozenset[str]) -> str:
    return plan_text(sorted(candidate.groups), candidate.rest, len(candidate.high), default)
