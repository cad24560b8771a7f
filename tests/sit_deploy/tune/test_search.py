"""The search for plans on a clock and times that are made up: what is tried, what it costs, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest

from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing, pareto_front
from sit_deploy.tune.search import Found, Meter, Space, refine, search

DEFAULT = frozenset({"qkv", "fc1"})
SPACE = Space(("stem", "qkv", "attention", "fc1"), DEFAULT, ("fp32", "bf16"), ("fp32", "bf16"))
# share of the float32 engine's time that each group saves, and the power of the error that it adds
GAINS = {"stem": 0.2, "qkv": 0.2, "attention": -0.05, "fc1": 0.25}
ERRORS = {"stem": 2e-4, "qkv": 1e-4, "attention": 5e-3, "fc1": 1e-4}


@dataclass
class Machine:
    """An engine whose times and errors add up, on a clock that a timing takes 4 seconds of, and an error 1."""

    gains: dict[str, float] = field(default_factory=lambda: dict(GAINS))
    bf16: tuple[float, float] = (0.1, 2e-5)
    layers: dict[str, float] = field(
        default_factory=dict
    )  # error that a layer takes along where it stays high
    noisy: Callable[[int], bool] = lambda _: False
    now: float = 0.0
    timed: list[Candidate] = field(default_factory=list)
    compared: list[Candidate] = field(default_factory=list)
    unbuildable: frozenset[str] = frozenset()

    def time(self, candidate: Candidate) -> Timing | None:
        self.now += 4
        self.timed.append(candidate)
        if candidate.groups & self.unbuildable:
            return None
        cost = 1 - sum(self.gains[group] for group in candidate.groups)
        cost -= self.bf16[0] if candidate.rest == "bf16" else 0
        ratio = 1 / (cost + 0.01 * len(candidate.high))
        noise = "others took the CPUs" if self.noisy(len(self.timed)) else None
        return Timing(ratio, 0.99 * ratio, 1.01 * ratio, 10 / ratio, noise)

    def error(self, candidate: Candidate) -> LogitsError:
        self.now += 1
        self.compared.append(candidate)
        power = sum(ERRORS[group] for group in candidate.groups) - sum(
            self.layers[name] for name in candidate.high
        )
        return LogitsError(power + (self.bf16[1] if candidate.rest == "bf16" else 0))

    def meter(
        self, seconds: float = 1000.0, done: Callable[[Iterable[Measured]], None] = lambda _: None
    ) -> Meter:
        return Meter(self.time, self.error, seconds, clock=lambda: self.now, done=done)


def db_below(usual: Measured) -> float:
    return usual.error.sqnr_db - 1


def groups_of(found: Found) -> list[tuple[str, str]]:
    return [("+".join(sorted(one.candidate.groups)), one.candidate.rest) for one in found.measured]


def test_float_engines_and_the_default_groups_come_first() -> None:
    found = search(SPACE, Machine().meter(), db_below)
    assert groups_of(found)[:4] == [("fc1+qkv", "fp32"), ("fc1+qkv", "bf16"), ("", "fp32"), ("", "bf16")]
    assert found.finished and found.seconds == 4 * len(found.measured) + sum(
        one.error is not None for one in found.measured
    )


def test_groups_are_tried_in_the_faster_rest_beside_the_default_ones() -> None:
    tried = groups_of(search(SPACE, Machine().meter(), db_below))[4:8]
    assert tried == [
        ("fc1+qkv+stem", "bf16"), ("attention+fc1+qkv", "bf16"), ("fc1", "bf16"), ("qkv", "bf16"),
    ]  # fmt: skip


def test_no_error_is_measured_of_a_group_that_gains_no_time() -> None:
    machine = Machine()
    found = search(SPACE, machine.meter(), db_below)
    slower = Candidate(DEFAULT | {"attention"}, "bf16")
    assert found.of(slower).error is None and slower not in machine.compared
    assert not any("attention" in one.candidate.groups for one in found.measured if one.candidate != slower)


def test_the_walk_goes_by_gain_for_error_and_ends_below_what_holds() -> None:
    """fc1 gains most for its error, then qkv, then the stem: the whole first, and fp32 beside what missed the limit."""
    machine = Machine(bf16=(0.1, 3e-4))
    found = search(SPACE, machine.meter(), db_below)
    order = groups_of(found)[8:]
    assert order == [
        ("fc1+qkv+stem", "fp32")
    ]  # misses the limit by its stem; then the default ones, measured before
    everything = search(SPACE, Machine(bf16=(0.1, 3e-4)).meter())
    assert groups_of(everything)[8:] == [("fc1+qkv+stem", "fp32"), ("fc1", "fp32")]


@pytest.mark.parametrize("seconds", range(1, 60, 3))
def test_the_seconds_may_run_out_after_any_step(seconds: int) -> None:
    """What was measured until then stands, and nothing is begun after."""
    machine, kept = Machine(), []
    found = search(SPACE, machine.meter(seconds, lambda measured: kept.append(tuple(measured))), db_below)
    assert machine.now <= seconds + 5
    assert kept[-1] == found.measured
    whole = search(SPACE, Machine().meter(), db_below)
    assert found.finished == (len(found.measured) == len(whole.measured))
    assert len(found.measured) >= min(-(-seconds // 5), 4)


def test_what_was_measured_before_costs_nothing() -> None:
    machine = Machine()
    first = search(SPACE, machine.meter(20), db_below)
    known = {one.candidate: one for one in first.measured}
    spent = machine.now

    def time(candidate: Candidate) -> Timing | None:
        return known[candidate].timing if candidate in known else machine.time(candidate)

    def error(candidate: Candidate) -> LogitsError:
        again = known.get(candidate)
        return again.error if again and again.error else machine.error(candidate)

    second = search(SPACE, Meter(time, error, 1000, clock=lambda: machine.now), db_below)
    assert second.finished and second.measured[: len(known)] == first.measured
    assert machine.now - spent < search(SPACE, Machine().meter(), db_below).seconds - 10


def test_a_machine_that_tells_nothing_is_given_up_early() -> None:
    machine = Machine(noisy=lambda _: True)
    found = search(SPACE, machine.meter(100), db_below)
    assert 25 <= machine.now <= 50  # the first plan waits for a quiet moment, for a quarter of the seconds
    assert not any(one.timing.usable for one in found.measured) and not machine.compared


def test_a_busy_moment_is_waited_out() -> None:
    machine = Machine(noisy=lambda number: number <= 3)
    found = search(SPACE, machine.meter(100), db_below)
    assert machine.timed[:4] == [SPACE.usual] * 4 and found.of(SPACE.usual).usable


def test_groups_with_little_work_are_tried_last() -> None:
    space = replace(SPACE, small=frozenset({"stem"}))
    assert groups_of(search(space, Machine().meter(), db_below))[4:8] == [
        ("attention+fc1+qkv", "bf16"), ("fc1", "bf16"), ("qkv", "bf16"), ("fc1+qkv+stem", "bf16"),
    ]  # fmt: skip


def test_a_time_that_says_nothing_is_taken_twice() -> None:
    """But for the first plan, which waits longer."""
    machine = Machine(noisy=lambda number: number == 2)
    found = search(SPACE, machine.meter(), db_below)
    second = Candidate(DEFAULT, "bf16")
    assert machine.timed[:4] == [SPACE.usual, second, second, Candidate()] and found.of(second).usable


def test_what_the_engine_cannot_be_built_of_is_left_out() -> None:
    found = search(SPACE, Machine(unbuildable=frozenset({"stem"})).meter(), db_below)
    assert found.finished and not any("stem" in one.candidate.groups for one in found.measured)


def test_one_rest_and_one_group_alone() -> None:
    found = search(Space(("fc1",), frozenset({"fc1"}), ("fp32",)), Machine().meter(), db_below)
    assert groups_of(found) == [("fc1", "fp32"), ("", "fp32")]


def test_the_front() -> None:
    found = search(SPACE, Machine().meter())
    front = pareto_front(found.measured)
    ratios, errors = [one.timing.ratio for one in front], [one.error.power for one in front]
    assert ratios == sorted(ratios, reverse=True) and errors == sorted(errors, reverse=True)
    assert front[-1].candidate == Candidate() and front[0].candidate == Candidate(DEFAULT | {"stem"}, "bf16")


# ---------------------------------------------------------------------------------------------------- single layers

LAYERS = {f"stem/{number}": 4e-5 for number in range(5)}


def begun(machine: Machine, seconds: float = 1000.0) -> tuple[Meter, Measured, Measured]:
    meter = machine.meter(seconds)
    fast = meter.measure(Candidate(DEFAULT | {"stem"}, "fp32"))
    kept = meter.measure(SPACE.usual)
    return meter, fast, kept


def test_as_few_layers_go_back_as_the_limit_asks_for() -> None:
    meter, fast, kept = begun(Machine(layers=LAYERS))
    best = refine(meter, fast, kept, list(LAYERS), lambda one: one.error.power <= 2.9e-4)
    assert best.candidate == replace(fast.candidate, high=tuple(LAYERS)[:3])
    assert kept.cost > best.cost > fast.cost


def test_layers_are_not_taken_back_beyond_what_is_faster() -> None:
    meter, fast, kept = begun(Machine(layers=LAYERS, gains={**GAINS, "stem": 0.015}))
    assert refine(meter, fast, kept, list(LAYERS), lambda one: one.error.power <= 2.9e-4) is None


def test_nobody_keeps_the_limit() -> None:
    meter, fast, _ = begun(Machine(layers=LAYERS))
    assert refine(meter, fast, None, list(LAYERS), lambda _: False) is None
    assert refine(meter, fast, None, [], lambda _: True) is None


def test_too_little_in_8_bits_is_not_tried() -> None:
    machine = Machine(layers=LAYERS)
    meter, fast, _ = begun(machine)
    before = len(machine.timed)
    assert refine(meter, fast, None, list(LAYERS), lambda _: True, lambda _: False) is None
    assert len(machine.timed) == before


def test_the_seconds_run_out_among_single_layers() -> None:
    meter, fast, kept = begun(Machine(layers=LAYERS), seconds=12)
    best = refine(meter, fast, kept, list(LAYERS), lambda one: one.error.power <= 2.9e-4)
    assert best is None or len(best.candidate.high) == 4
