"""The graph of a schedule, made of a short one, is the graph that the exporter writes of the whole model but for its weights."""

from __future__ import annotations

import pytest

from engines.pace import Pace
from engines.worker import Slice
from sit_deploy.latency.bench import ROUNDS, timed
from sit_deploy.latency.graphs import ScheduleGraphs, lowered, random_model
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.target import Target
from sit_deploy.models.catalog import get_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "precision", "batch"),
    [("lvvit_nano", "int8", 2), ("eva02_tiny_patch14_224:depth=4", "fp32", 1)],
)
def test_a_schedules_graph_is_the_whole_models(model: str, precision: str, batch: int) -> None:
    from benchmarks.latency_table import anatomy
    from sit_deploy.graph import export
    from sit_deploy.graph.deploy_form import to_deploy_form

    target = Target(get_config(model), "onnxruntime", precision, image_size=112, num_classes=10, batch=batch)
    depth, patches = target.config.depth, target.widths.patches
    schedule = Schedule((1, depth - 2, 1), (patches, patches * 2 // 5, patches // 7))
    made = ScheduleGraphs(target).graph(schedule)
    whole = random_model(target, schedule.stage_blocks, schedule.kept)
    exported = export.export_onnx(to_deploy_form(whole), whole.img_size, batch=batch)
    assert anatomy(made) == anatomy(lowered(target, exported))
    weights = [t.raw_data for t in made.graph.initializer if len(t.raw_data) > 10_000]
    assert len(set(weights)) == len(weights)  # each block reads its own from memory


@pytest.mark.slow
def test_schedules_of_the_same_counts_leave_the_short_graph_as_it_is() -> None:
    """Images of few patches have no stand-ins for counts: the graph that is kept is that of the schedule itself."""
    target = Target(
        get_config("deit_tiny_patch16_224:depth=6"), "onnxruntime", "fp32", image_size=64, num_classes=8
    )
    graphs, kept = ScheduleGraphs(target), (16, 12, 6)
    first = graphs.graph(Schedule((1, 2, 3), kept)).SerializeToString(deterministic=True)
    graphs.graph(Schedule((3, 1, 2), kept))
    assert graphs.graph(Schedule((1, 2, 3), kept)).SerializeToString(deterministic=True) == first


def slices(*fastest: float, others: float = 0.0) -> list[Slice]:
    return [Slice([1.3 * one, one, 2 * one], [], others, Pace(1, 1.0, 1.0), True) for one in fastest]


def test_a_ratio_is_that_of_the_fastest_calls() -> None:
    against = slices(*[0.02] * ROUNDS)
    found = timed(against, against, slices(*[0.01] * 4, *[0.0101] * 2, 0.0102, 0.0102, 0.018))
    assert found.ratio == pytest.approx(0.505) and found.doubt is None
    assert found.reference_ms == pytest.approx(26) and found.spread < 0.02


def test_a_machine_that_slows_down_divides_out() -> None:
    """Of each round the reference is timed before and after: what a clock that drifts does between them is the same for both."""
    before = [0.02 * 1.1**place for place in range(ROUNDS)]
    after = [1.04 * one for one in before]
    found = timed(slices(*before), slices(*after), slices(*(0.7 * 1.02 * one for one in before)))
    assert found.ratio == pytest.approx(0.7) and found.spread < 1e-9 and found.doubt is None


def test_rounds_that_disagree_and_busy_cpus_say_nothing() -> None:
    usual = slices(*[0.02] * ROUNDS)
    assert (
        "half of the rounds lie between"
        in timed(usual, usual, slices(*[0.01] * 3, *[0.013] * 2, *[0.015] * 4)).doubt
    )
    busy = slices(*[0.01] * ROUNDS, others=0.9)
    taken = slices(*[0.02] * ROUNDS, others=0.9)
    assert "other programs took" in timed(taken, taken, busy).doubt
