from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from calibration.plan import HIGH, WORTH_IT, PlannedLayer, QuantPlan, Reason, order_of_return
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.pipeline.accuracy_budget import fit


def plan_of(*macs: int, high: tuple[int, ...] = ()) -> QuantPlan:
    """A plan of layers l0, l1, ... with this work; those in `high` are in higher precision from the start."""
    return QuantPlan(
        "int8",
        tuple(
            PlannedLayer(f"l{i}", "fc1", HIGH if i in high else "int8", Reason.CONSTANT_WEIGHT, work)
            for i, work in enumerate(macs)
        ),
    )


def lost(drop: float) -> Accuracy:
    return Accuracy(1000, 90.0, 99.0, 90.0 - drop, 99.0, 95.0)


class Tried:
    """Stands for the measurement of a plan; `drop` says what one loses by its layers in 8 bits. Remembers what it measured."""

    def __init__(self, drop: Callable[[set[str]], float]) -> None:
        self.drop = drop
        self.plans: list[QuantPlan] = []

    def __call__(self, plan: QuantPlan) -> Accuracy:
        self.plans.append(plan)
        return lost(self.drop(set(plan.quantized)))


def run(plan: QuantPlan, limit: float, noise: Mapping[str, float], tried: Tried) -> Any:
    return fit(plan, lost(tried.drop(set(plan.quantized))), limit, lambda: noise, tried)


def test_a_plan_that_keeps_the_budget_is_taken_as_it_is() -> None:
    plan = plan_of(10, 10, 10)

    def never(*_: Any) -> Any:
        raise AssertionError("measured for nothing")

    for drop in (-0.5, 0.3, 0.5):  # up to the limit, to the last digit
        found = fit(plan, lost(drop), 0.5, never, never)
        assert found.plan is plan
        assert found.accuracy.drop == drop
        assert found.tries == ((1.0, drop),)


def test_order_is_harm_for_the_work_saved() -> None:
    plan = plan_of(100, 10, 50, 0, 10, high=(4,))
    noise = {"l0": 1.0, "l1": 0.5, "l2": 1.0, "l3": 1e-3}
    assert order_of_return(plan, noise) == ["l1", "l2", "l0", "l3"]
    assert order_of_return(plan_of(1, 1, 1), {"l2": 1, "l1": 1, "l0": 1}) == [
        "l0",
        "l1",
        "l2",
    ]  # the same each time


@pytest.mark.parametrize("needed", range(1, 13))
def test_bisection_finds_the_fewest_that_have_to_go_back(needed: int) -> None:
    """Each of the first `needed` layers alone would break the budget, so that exactly they must be high."""
    plan = plan_of(*[10] * 17)
    noise = {f"l{i}": 100.0 - i for i in range(17)}
    tried = Tried(lambda low: float(any(f"l{i}" in low for i in range(needed))))
    found = run(plan, 0.5, noise, tried)
    high = [layer for layer in found.plan.layers if layer.precision == "high"]
    assert [layer.name for layer in high] == [f"l{i}" for i in range(needed)]
    assert {layer.reason for layer in high} == {Reason.ACCURACY_BUDGET}
    assert [layer.sentence for layer in high] == [
        f"kept high for accuracy: number {i} by harm for its work" for i in range(1, needed + 1)
    ]
    assert found.accuracy.drop == 0
    assert len(tried.plans) <= 5  # log2(17), and no more
    assert found.tries == ((1.0, 1.0), *((p.share, tried.drop(set(p.quantized))) for p in tried.plans))


def test_never_less_than_is_worth_it() -> None:
    """Ten layers of equal work: seven may go back, an eighth would leave 20 %."""
    plan = plan_of(*[10] * 10)
    noise = {f"l{i}": 10.0 - i for i in range(10)}
    for needed in (7, 8):
        tried = Tried(lambda low, needed=needed: 9.0 * any(f"l{i}" in low for i in range(needed)))
        found = run(plan, 1.0, noise, tried)
        assert (found.plan is None) == (needed == 8)
        assert all(p.share >= WORTH_IT for p in tried.plans)
    assert found.accuracy is None


def test_layers_high_from_the_start_stay_so_and_count_as_work() -> None:
    plan = plan_of(10, 10, 10, 70, high=(3,))
    tried = Tried(lambda low: 9.0 * ("l0" in low))
    found = run(plan, 1.0, {"l0": 3, "l1": 2, "l2": 1}, tried)
    assert found.plan is None  # 20 % would be left


def test_impossible() -> None:
    plan = plan_of(*[10] * 8)
    tried = Tried(lambda low: 5.0)
    found = run(plan, 1.0, {f"l{i}": 1.0 for i in range(8)}, tried)
    assert (found.plan, found.accuracy) == (None, None)
    assert len(found.tries) == 1 + len(tried.plans) > 2
    assert all(drop == 5.0 for _, drop in found.tries)


def test_a_single_layer_cannot_be_split() -> None:
    found = run(plan_of(10), 1.0, {"l0": 1.0}, Tried(lambda low: 5.0))
    assert found.plan is None and found.tries == ((1.0, 5.0),)


def test_what_is_returned_was_measured_even_where_more_is_not_better() -> None:
    """The drop need not fall as more layers go back; a plan that breaks the budget must never come out."""
    plan = plan_of(*[10] * 9)
    drops = {8: 0.2, 7: 3.0, 6: 0.4, 5: 2.0, 4: 0.1, 3: 0.3, 2: 9.0, 1: 9.0}
    tried = Tried(lambda low: drops.get(len(low), 4.0))
    found = run(plan, 0.5, {f"l{i}": 9.0 - i for i in range(9)}, tried)
    assert found.plan in tried.plans
    assert found.accuracy.drop == drops[len(found.plan.quantized)] <= 0.5
