"""The accuracy budget: the fastest mix of 8 bits and higher precision whose top-1 falls by no more than allowed.

Layers are taken back to higher precision in the order of what each alone does to the logits for every multiply-accumulate it
saves: much harm for little work goes first. How many have to go is found by bisection, each try measured on all labelled
images. That the drop falls as more go back is an assumption; what is returned was measured in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import MODEL
from sit_deploy.errors import GateError
from sit_deploy.measure.parity import require
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.logits import REFERENCE_BATCH, RememberedLogits
from sit_deploy.pipeline.lower import LoweredGraph, lower_quantized
from sit_deploy.pipeline.sensitivity import Sensitivity
from sit_deploy.pipeline.work import Work

if TYPE_CHECKING:
    from calibration.plan import QuantPlan
    from sit_deploy.measure.accuracy import Accuracy


@dataclass(frozen=True)
class Fit:
    """The outcome: a plan that keeps the budget with its accuracy, or None.

    Attributes:
        tries: share in 8 bits and drop of each try.
    """

    plan: QuantPlan | None
    accuracy: Accuracy | None
    tries: tuple[tuple[float, float], ...]


def fit(
    plan: QuantPlan,
    measured: Accuracy,
    limit: float,
    noise: Callable[[], Mapping[str, float]],
    attempt: Callable[[QuantPlan], Accuracy],
) -> Fit:
    """Find the plan with the most work in 8 bits that loses at most `limit` points of top-1.

    Args:
        plan: with all layers that may run in 8 bits.
        measured: its accuracy.
        limit: in points.
        noise: measures every layer alone; asked only where the whole plan loses too much.
        attempt: measures a plan.
    """
    from calibration.plan import WORTH_IT, order_of_return

    tries = [(plan.share, measured.drop)]
    if measured.drop <= limit:
        return Fit(plan, measured, tuple(tries))
    alone = noise()
    order = order_of_return(plan, alone)
    best: tuple[QuantPlan, Accuracy] | None = None
    low, high = 1, len(order) - 1  # how many go back
    while low <= high:
        count = (low + high) // 2
        smaller = plan.keep_high(order[:count])
        if smaller.share < WORTH_IT:
            high = count - 1
            continue
        accuracy = attempt(smaller)
        tries.append((smaller.share, accuracy.drop))
        if accuracy.drop <= limit:
            best, high = (smaller, accuracy), count - 1
        else:
            low = count + 1
    return Fit(*(best or (None, None)), tuple(tries))


def keep_budget(
    work: Work, lowered: LoweredGraph, sensitivity: Sensitivity, folder: Path
) -> tuple[LoweredGraph, tuple[tuple[float, float], ...]]:
    """Return the graph whose plan keeps the accuracy asked for, if any was, and share in 8 bits and drop of each try.

    Args:
        work: of the build.
        lowered: with all layers in 8 bits that may be.
        sensitivity: of its layers; measured only where they lose too much.
        folder: for model.onnx, which is the last plan's.

    Raises:
        NoGainError: no plan with enough layers in 8 bits keeps it, or the one that does is out of tolerance.
    """
    request, limit = work.request, work.request.max_accuracy_drop
    if limit is None:
        return lowered, ()
    plans = _MeasuredPlans(work, lowered, folder)
    whole = plans.measure(plans.plan)
    fitted = fit(plans.plan, whole, limit, sensitivity.noise, plans.measure)
    tries = "; ".join(f"{share:.0%} in 8 bits: {drop:+.2f}" for share, drop in fitted.tries)
    if fitted.plan is None:
        raise NoGainError(
            NoGain.ACCURACY,
            f"{request.precision} cannot keep top-1 within {limit:g} points (lost by share of the work {tries}); "
            f"{request.high} was built instead",
        )
    if plans.plan is not fitted.plan:
        plans.measure(fitted.plan)  # writes its graph again
    if high := fitted.plan.kept_for_accuracy:
        more = ", ..." if len(high) > 3 else ""
        work.note(
            f"kept in {request.high} to lose at most {limit:g} points ({tries}): {', '.join(high[:3])}{more}"
        )
    require_tolerance(work)
    return plans.lowered, fitted.tries


def require_tolerance(work: Work) -> None:
    """Give up 8 bits that are out of tolerance, where only then something else can be built: an accuracy budget was given.

    Raises:
        NoGainError: a hop is out of tolerance.
    """
    if work.request.max_accuracy_drop is None:
        return
    try:
        require(work.hops, f"{work.request.high} was built instead")
    except GateError as error:
        raise NoGainError(NoGain.TOLERANCE, str(error)) from None


class _MeasuredPlans:
    """The plans that are tried: each is written as model.onnx, and its accuracy measured on the labelled images."""

    def __init__(self, work: Work, lowered: LoweredGraph, folder: Path) -> None:
        self.lowered = lowered  # of the last plan
        self._work = work
        self._folder = folder
        self._first = lowered.quantization
        self._reference = RememberedLogits(lowered.float_graph.loaded.model)

    @property
    def plan(self) -> QuantPlan:
        """The last plan tried."""
        return self.lowered.quantization.quantizer.plan

    def measure(self, plan: QuantPlan) -> Accuracy:
        """Write a plan's graph and return its accuracy."""
        work = self._work
        if plan is not self.plan:
            work.hops[:] = [hop for hop in work.hops if hop.precision != work.request.precision]
            quantization = replace(self._first, quantizer=self._first.quantizer.with_plan(plan))
            self.lowered = lower_quantized(work, self.lowered.float_graph, quantization, self._folder)
        with work.step("Measuring accuracy of a plan") as report:
            return self._accuracy(report)

    def _accuracy(self, report: Any) -> Accuracy:
        from sit_deploy.inference import Classifier, graph_on_onnxruntime
        from sit_deploy.measure.accuracy import measure

        work = self._work
        with (
            graph_on_onnxruntime(self._folder / MODEL, threads=work.request.threads) as runner,
            Classifier(runner, work.request.batch_range) as classifier,
        ):
            return measure(
                self._reference.again(),
                classifier.logits,
                work.samples,
                self.lowered.preprocessing,
                REFERENCE_BATCH,
                report,
                work.damaged,
            )
