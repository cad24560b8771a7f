"""The accuracy budget: the fastest mix of 8 bits and higher precision whose top-1 falls by no more than allowed.

Layers are taken back to higher precision in the order of what each alone does to the logits for every multiply-accumulate it
saves: much harm for little work goes first. How many have to go is found by bisection, each try measured on all labelled
images. That the drop falls as more go back is an assumption; what is returned was measured in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration.plan import QuantPlan

if TYPE_CHECKING:
    from sit_deploy.measure.accuracy import Accuracy

Try = Callable[[QuantPlan], "Accuracy"]

WORTH_IT = 0.25  # a plan with less than this share of its work in 8 bits has nothing to gain over none


@dataclass(frozen=True)
class Fit:
    """The outcome: a plan that keeps the budget with its accuracy, or None.

    Attributes:
        tries: share in 8 bits and drop of each try.
    """

    plan: QuantPlan | None
    accuracy: Accuracy | None
    tries: tuple[tuple[float, float], ...]


def order_of_return(plan: QuantPlan, noise: Mapping[str, float]) -> list[str]:
    """Return the plan's layers, those that should go back to higher precision first, first.

    Args:
        plan: with all layers that may run in 8 bits.
        noise: by layer, the power of the logits' error with that layer alone in 8 bits.
    """
    macs = {layer.name: max(layer.macs, 1) for layer in plan.layers}
    return sorted(plan.quantized, key=lambda name: (-noise[name] / macs[name], name))


def fit(
    plan: QuantPlan,
    measured: Accuracy,
    limit: float,
    noise: Callable[[], Mapping[str, float]],
    attempt: Try,
) -> Fit:
    """Find the plan with the most work in 8 bits that loses at most `limit` points of top-1.

    Args:
        plan: with all layers that may run in 8 bits.
        measured: its accuracy.
        limit: points of top-1 that may be lost.
        noise: measures every layer alone; asked only where the whole plan loses too much.
        attempt: measures a plan.
    """
    tries = [(plan.share, measured.drop)]
    if measured.drop <= limit:
        return Fit(plan, measured, tuple(tries))
    alone = noise()
    order = order_of_return(plan, alone)
    found: tuple[QuantPlan, Accuracy] | None = None
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
            found, high = (smaller, accuracy), count - 1
        else:
            low = count + 1
    return Fit(*(found or (None, None)), tuple(tries))
