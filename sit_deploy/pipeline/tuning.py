"""`--quantize auto`: the plan for 8 bits, chosen by measuring candidates on the engine that is built."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError
from sit_deploy.pipeline.calibration import Quantization
from sit_deploy.pipeline.candidates import CandidateBench, Material, float_precisions, rests
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.float_graph import FloatGraph
from sit_deploy.pipeline.request import TUNE_SECONDS
from sit_deploy.pipeline.timings import open_timings
from sit_deploy.pipeline.tuned import Tuning
from sit_deploy.pipeline.tuning_verdict import misses, tell_tuning
from sit_deploy.pipeline.work import Work
from sit_deploy.report.tuning_text import factor_text
from sit_deploy.tune.choose import Choice, Verdict, choose
from sit_deploy.tune.measured import (
    TIE,
    Candidate,
    LogitsError,
    Measured,
    Timing,
    is_tie,
)
from sit_deploy.tune.search import Found, Meter, Space, refine, search

if TYPE_CHECKING:
    from sit_deploy.pipeline.work import Progress

# What a plan must keep where nobody says: an SQNR from which on no trained model of docs/quantization.md lost more than a picture or two, and
# so much below the usual plan's where that has less.
ENOUGH_DB, BELOW_DB = 30.0, 1.0
_SMALL = 0.01  # share of the work of a group that is tried last
_FEW_IMAGES = 4  # below which what plans are compared on is luck
_LATE = 3  # plans of an earlier build that are timed again after --tune-seconds: what would be built, the float engine, and a tie
_NOISE_IMAGES = 8  # that single layers are measured on


def least_db(usual_db: float) -> float:
    """Return the SQNR that a plan must keep where nobody says, in dB, by that of the usual plan."""
    return min(ENOUGH_DB, usual_db - BELOW_DB)


def tune(
    work: Work, float_graph: FloatGraph, quantization: Quantization, folder: Path
) -> tuple[Quantization, Tuning]:
    """Return the quantization with the plan that measuring chose; the request's rest and groups become those of the plan.

    Args:
        work: of the build, for an engine that runs here.
        float_graph: what nothing is in 8 bits of yet.
        quantization: of every group that may be tried; its images are there.
        folder: for candidates' files, removed again.

    Raises:
        NoGainError: a limit was given, and no plan in 8 bits keeps it and is faster than the best float engine that does.
        InputError: the file of timings is damaged.
    """
    from sit_deploy.quantize.quantizer import outlier_notes

    with work.step("Tuning the plan on the engine") as report:
        tuner = _Tuner(work, float_graph, quantization, folder, report)
        tuning = tuner.run()
    work.tuning = tuning
    tell_tuning(work, tuning)
    chosen = tuning.chosen
    plan = tuner.material.plan(chosen)
    if tuning.choice.verdict in (Verdict.NOISE, Verdict.NO_TIME):
        plan = quantization.quantizer.plan.of_groups(chosen.groups, timed=False)
    quantizer = replace(quantization.quantizer.with_plan(plan), corrected=tuner.corrected)
    work.note_of_8_bits(*outlier_notes(plan))
    # the command that builds it again names the plan itself: it needs no timing, and finds no other
    named, method = tuning.space.named(chosen), quantizer.method
    work.request = replace(work.request, rest=chosen.rest, quantize=named, calib_method=method)
    return replace(quantization, quantizer=quantizer), tuning


class _Tuner:
    """One tuning: what holds, and the order of its parts."""

    def __init__(
        self, work: Work, float_graph: FloatGraph, quantization: Quantization, folder: Path, report: Progress
    ) -> None:
        from calibration.plan import DEFAULT_GROUPS

        assert work.engine is not None and quantization.stream is not None
        self._work, self._request, self._report = work, work.request, report
        quantizer = quantization.quantizer
        present = dict.fromkeys(layer.group for layer in quantizer.plan.layers if not layer.is_high)
        default = frozenset(present) & DEFAULT_GROUPS
        work_of = dict.fromkeys(present, 0)
        for layer in quantizer.plan.layers:
            if layer.group in work_of:
                work_of[layer.group] += layer.macs
        small = (group for group, macs in work_of.items() if macs < _SMALL * sum(work_of.values()))
        self.space = Space(
            tuple(present),
            default,
            rests(work.engine, work.request.rest),
            float_precisions(work.engine),
            frozenset(small) - default,
        )
        self.material = Material(
            work.request,
            float_graph,
            quantizer,
            quantization.stream,
            work.samples,
            work.engine,
            work.damaged,
        )
        self._bench = CandidateBench(work.engine, self.material, folder / "tuning")
        self._timings = open_timings(work, quantization)
        self._drops: dict[Candidate, float] = {}
        self._timed: set[Candidate] = set()  # in this build
        self._late = 0  # how often one was to be timed again after the seconds
        #: whether biases of what is built are corrected
        self.corrected = quantizer.corrected
        seconds = work.request.tune_seconds
        self._meter = Meter(
            self._time, self._error, TUNE_SECONDS if seconds is None else seconds, done=self._done
        )
        self._usual_db: float | None = None

    def run(self) -> Tuning:
        if (images := len(self.material.stream.sources)) < _FEW_IMAGES:
            self._work.warn(
                f"plans were compared on few calibration images ({images}), which tells little of others; give more"
            )
        if self._timings.foreign:
            self._work.note(
                f"timings of another CPU, or of other instructions, are not used ({', '.join(self._timings.foreign)}): plans are measured here"
            )
        guided = self._request.max_accuracy_drop is None
        with self._bench:
            found = search(self.space, self._meter, self._least_db if guided else None)
            found, choice = self._decide(found)
            if choice.verdict in (Verdict.PLAN, Verdict.FLOAT, Verdict.NONE) and self._refine(found, choice):
                found = Found(self._meter.measured, found.finished, self._meter.spent)
                found, choice = self._decide(found)
            if choice.verdict in (Verdict.NOISE, Verdict.NO_TIME):
                self._check_usual()
            if choice.plan is not None:
                found, choice = self._as_built(found, choice)
        measured = tuple(replace(one, drop=self._drops.get(one.candidate)) for one in found.measured)
        tries = tuple(
            (self.material.plan(one).share, drop) for one, drop in self._drops.items() if not one.is_float
        )
        return Tuning(
            choice,
            replace(found, measured=measured),
            self.space,
            self._limit,
            self._timings,
            sum(not candidate.is_float for candidate in self._timed),
            tries,
            self._bench.refused,
        )

    def _as_built(self, found: Found, choice: Choice) -> tuple[Found, Choice]:
        """Settle whether biases of the plan are corrected: measured were all as is best for the default one.

        Where that is not best for this one, it is measured again, and stays as it was if it misses the limit then.
        """
        from sit_deploy.quantize.quantizer import choose_correction

        plan, quantizer, stream = choice.plan, self.material.quantizer, self.material.stream
        best = choose_correction(quantizer.with_plan(self.material.plan(plan.candidate)), stream)
        if best.corrected == quantizer.corrected:
            return found, choice
        self._bench.correct(best.corrected)
        again, drops = replace(plan, error=self._bench.error(plan.candidate)), dict(self._drops)
        self._drops.pop(plan.candidate, None)
        if not self._keeps(again):
            self._drops = drops
            return found, choice
        self.corrected = best.corrected
        measured = tuple(again if one.candidate == again.candidate else one for one in found.measured)
        return replace(found, measured=measured), replace(choice, plan=again)

    def _with_known(self, found: Found) -> Found:
        """Return what was measured by now, with what an earlier tuning measured besides, and still holds."""
        now = self._meter.measured
        measured = {one.candidate for one in now}
        known = (one for one in self._timings.known() if one.candidate not in measured)
        return replace(found, measured=(*now, *filter(self._may_be_built, known)))

    def _may_be_built(self, one: Measured) -> bool:
        """Whether what an earlier tuning measured may be chosen by this one: --rest or the calibration may leave less to choose from now."""
        layers = {layer.name for layer in self.material.quantizer.plan.layers}
        return self.space.offers(one.candidate) and layers >= set(one.candidate.high)

    def _decide(self, found: Found) -> tuple[Found, Choice]:
        """Choose; what that rests on is measured again where it was kept from an earlier build: the moment is another, and a file can be anything.

        Each that is slower than it was may leave the choice to another that was kept: when the seconds are used up this ends, and
        the choice is of what was timed in this build.
        """
        while True:
            found = self._with_known(found)
            choice = self._choose(found)
            decisive = filter(None, (choice.plan, choice.best_float, choice.tie))
            kept = next((one for one in decisive if one.candidate not in self._timed), None)
            if kept is None:
                return found, choice
            self._late += self._meter.share >= 1
            if self._late > _LATE:
                found = replace(found, finished=False)
            else:
                self._renew(kept)

    def _renew(self, kept: Measured) -> None:
        """Measure again what was kept from an earlier build; what comes of it takes the place of the old measures everywhere."""
        again = self._measured_again(kept)
        self._meter.renew(kept.candidate, again)
        if again is None or not again.timing.usable:
            self._timings.drop(kept.candidate.key)
        self._timings.keep([again] if again else [])

    def _measured_again(self, kept: Measured) -> Measured | None:
        """Return the measures of now; None where it cannot be built any more."""
        timing = self._now(kept.candidate)
        if timing is not None and not timing.usable:  # once more, as of any other
            timing = self._now(kept.candidate)
        if timing is None:
            return None
        error = self._bench.error(kept.candidate) if timing.usable else kept.error
        return replace(kept, timing=timing, error=error)

    def _choose(self, found: Found) -> Choice:
        if self._late > _LATE:
            found = replace(found, measured=tuple(o for o in found.measured if o.candidate in self._timed))
        usual = found.of(self.space.usual)
        if usual is not None and usual.error is not None:
            self._usual_db = usual.error.sqnr_db
        return choose(found, self.space.usual, self._keeps)

    @property
    def _limit(self) -> str:
        request = self._request
        limits = []
        if request.max_accuracy_drop is not None:
            limits.append(f"at most {request.max_accuracy_drop:g} points of top-1 lost")
        if request.min_sqnr is not None:
            limits.append(f"SQNR of at least {request.min_sqnr:g} dB")
        return " and ".join(limits) or (
            f"SQNR of {ENOUGH_DB:g} dB, or at most {BELOW_DB:g} dB below that of the default groups"
        )

    def _least_db(self, usual: Measured) -> float:
        if self._request.min_sqnr is not None:
            return self._request.min_sqnr
        return least_db(usual.error.sqnr_db)

    def _keeps(self, one: Measured) -> bool:
        """Whether a measured candidate keeps what was asked for; accuracy is measured here, last."""
        request = self._request
        if not one.usable:
            return False
        least = request.min_sqnr
        if least is None and request.max_accuracy_drop is None:
            least = -math.inf if self._usual_db is None else least_db(self._usual_db)
        if least is not None and one.error.sqnr_db < least:
            return False
        return request.max_accuracy_drop is None or self._drop(one.candidate) <= request.max_accuracy_drop

    def _drop(self, candidate: Candidate) -> float:
        if candidate not in self._drops:
            self._drops[candidate] = self._bench.drop(candidate, self._report)
        return self._drops[candidate]

    def _refine(self, found: Found, choice: Choice) -> bool:
        """Take single layers back from what missed the limit; whether that was tried."""
        from calibration.plan import WORTH_IT

        plan, usual = choice.plan, found.of(self.space.usual)
        fast = choice.missed if plan is not None else usual
        if fast is None or (plan is not None and plan.cost / fast.cost < TIE):
            return False
        kept = set() if plan is None else set(self.material.plan(plan.candidate).quantized)
        names = [name for name in self.material.plan(fast.candidate).quantized if name not in kept]
        if len(names) < 2:
            return False

        def worth_it(candidate: Candidate) -> bool:
            return self.material.plan(candidate).share >= WORTH_IT

        refine(self._meter, fast, plan, self._order(names), self._keeps, worth_it)
        return True

    def _order(self, names: list[str]) -> list[str]:
        """Return layers by the harm that each alone does for its work, the most harmful first."""
        from calibration.plan import order_of_return
        from sit_deploy.quantize.sensitivity import measure_sensitivity

        quantizer, stream = self.material.quantizer, self.material.stream
        others = [name for name in quantizer.plan.quantized if name not in names]
        alone = quantizer.with_plan(quantizer.plan.keep_high(others))
        rows = measure_sensitivity(alone, stream.spread(_NOISE_IMAGES))
        return order_of_return(alone.plan, {name: row["noise"] for name, row in rows.items()})

    def _check_usual(self) -> None:
        """Refuse the usual plan, which nothing was found to be better than, where it misses the SQNR asked for."""
        least = self._request.min_sqnr
        if least is None:
            return
        found = self._bench.error(self.space.usual)
        if found.sqnr_db < least:
            raise NoGainError(NoGain.ACCURACY, misses(self._request.precision, self._limit, "fp32"), "fp32")

    def _time(self, candidate: Candidate) -> Timing | None:
        before = self._timings.timing(candidate.key)
        if candidate != self.space.usual and before is not None:
            return before
        now = self._now(candidate)
        if candidate != self.space.usual:
            return now
        if now is None:  # nor could it be at the end
            raise EngineError(
                f"the plan cannot be tuned: {self._request.precision} of the default groups, which all plans are compared with, cannot be "
                f"built: {self._bench.refused[candidate]}; mend that, name groups that can be built with --quantize, or build with "
                "--precision fp32"
            )
        # by which it shows whether kept times hold: clocks and neighbours change
        if before is None or not now.usable:
            return now
        if not is_tie(Measured(candidate, before), Measured(candidate, now)):
            self._timings.forget()
            self._work.note(
                f"timings kept from before are not used: the default plan was {factor_text(before.ratio)} as fast as fp32 then, and is "
                f"{factor_text(now.ratio)} now"
            )
        return now

    def _now(self, candidate: Candidate) -> Timing | None:
        """Time a candidate, whatever was kept of it."""
        self._timed.add(candidate)
        return self._bench.time(candidate)

    def _error(self, candidate: Candidate) -> LogitsError:
        return self._timings.error(candidate.key) or self._bench.error(candidate)

    def _done(self, measured: Iterable[Measured]) -> None:
        self._timings.keep(measured)
        self._report("", min(99, round(100 * self._meter.share)), 100)
