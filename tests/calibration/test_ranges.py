from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from calibration.errors import CalibrationError
from calibration.ranges import TensorRange, observable_tensors, observe_ranges, with_range_outputs

IDENTITY = TensorRange()
bounds = st.floats(-10, 10, width=32)
some_ranges = st.one_of(
    st.just(IDENTITY),
    st.just(TensorRange(-math.inf, math.inf, True)),
    st.builds(lambda a, b: TensorRange(min(a, b), max(a, b)), bounds, bounds),
)


def network(batch: int | str = "n") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{batch},3,4,4] images) => (float[{batch},2] logits)
        <float[2,3,3,3] w = {{{", ".join(str(round(math.sin(i), 3)) for i in range(54))}}}, int64[2] axes = {{2, 3}}>
        {{ [conv] a = Conv <pads = [1,1,1,1]> (images, w)
           [relu] b = Relu (a)
           [shape] s = Shape (b)
           [log] c = Log (b)
           [mean] logits = ReduceMean <keepdims = 0> (b, axes) }}"""
    )


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)


def test_equals_a_numpy_reference() -> None:
    batches = [images(3, seed) for seed in range(4)]
    names = ["images", "a", "b", "logits"]
    seen = observe_ranges(network(), batches, names)
    reference = ReferenceEvaluator(network())
    values = {name: [] for name in names}
    for batch in batches:
        for name, value in zip(names, reference.run(names, {"images": batch}), strict=True):
            values[name].append(value)
    assert list(seen) == names
    for name in names:
        stacked = np.concatenate(values[name])
        assert seen[name].min == pytest.approx(stacked.min(), abs=1e-5)
        assert seen[name].max == pytest.approx(stacked.max(), abs=1e-5)
        assert seen[name].absmax == pytest.approx(np.abs(stacked).max(), abs=1e-5)
        assert not seen[name].non_finite


def test_default_is_every_float_activation() -> None:
    assert observable_tensors(network()) == ["images", "a", "b", "c", "logits"]
    assert list(observe_ranges(network(), [images(2)])) == ["images", "a", "b", "c", "logits"]


@given(some_ranges, some_ranges, some_ranges)
def test_merge_is_a_commutative_monoid(a: TensorRange, b: TensorRange, c: TensorRange) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(IDENTITY) == a
    assert a.merge(b).absmax == max(a.absmax, b.absmax)


@given(
    order=st.permutations(range(6)),
    cuts=st.sets(st.integers(1, 5)),
    fixed=st.sampled_from(["n", 1, 4]),
    broken=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_independent_of_order_and_batch_size(
    order: list[int], cuts: set[int], fixed: int | str, broken: bool
) -> None:
    data = images(6)
    if broken:
        data[3, 1, 2, 2] = np.nan
    batches = np.split(data[order], sorted(cuts))
    whole = observe_ranges(network(), [data])
    parts = observe_ranges(network(fixed), batches)
    for name, expected in whole.items():
        assert parts[name].non_finite == expected.non_finite
        assert parts[name].min == pytest.approx(expected.min, abs=1e-6)
        assert parts[name].max == pytest.approx(expected.max, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 7, 8, 31, 46, 47])
def test_non_finite_shows_wherever_it_stands(bad: float, position: int) -> None:
    # ONNX Runtime's own ReduceMax loses most of these.
    batch = images(1)
    batch.reshape(-1)[position] = bad
    seen = observe_ranges(network(), [images(2), batch, images(2)])
    assert seen["images"] == TensorRange(-math.inf, math.inf, True)
    assert seen["a"].non_finite
    assert observe_ranges(network(), [images(2)], ["a"])["a"].non_finite is False


def test_huge_finite_values_are_finite() -> None:
    # Their L1 norm overflows float32.
    seen = observe_ranges(network(), [np.full((1, 3, 4, 4), -3e38, np.float32)], ["images"])
    assert not seen["images"].non_finite
    assert seen["images"].absmax == pytest.approx(3e38)


def test_only_scalars_leave_the_graph() -> None:
    outputs = with_range_outputs(network(), ["a", "b"]).graph.output
    assert len(outputs) == 6
    for value in outputs:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert len(value.type.tensor_type.shape.dim) == 0


def test_batches_are_held_one_at_a_time() -> None:
    references: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for seed in range(5):
            batch = images(2, seed)
            references.append(weakref.ref(batch))
            yield batch
            del batch
            alive.append(sum(reference() is not None for reference in references))

    observe_ranges(network(), stream(), ["a"])
    assert len(alive) == 5
    assert max(alive) <= 1


def test_progress_counts_batches() -> None:
    calls: list[tuple[int, int]] = []
    batches = [images(1), images(1)]
    observe_ranges(network(), batches, ["a"], lambda text, done, total: calls.append((done, total)))
    observe_ranges(network(), iter(batches), ["a"], lambda text, done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("batches", "tensors", "message"),
    [
        ([], None, "no images to calibrate on"),
        ([images(0)], None, "with N at least 1"),
        (
            [np.zeros((1, 3, 5, 4), np.float32)],
            None,
            r"float32 \(1, 3, 5, 4\); the graph takes float32 \(N, 3, 4, 4\)",
        ),
        ([np.zeros((1, 3, 4, 4))], None, "is float64"),
        ([images(1)], ["nowhere"], "no float32 tensor 'nowhere'"),
        ([images(1)], ["s"], "no float32 tensor 's'"),
    ],
)
def test_bad_input_is_one_line(batches: list[np.ndarray], tensors: list[str] | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as raised:
        observe_ranges(network(), batches, tensors)
    assert "\n" not in str(raised.value)


def test_graph_that_does_not_load() -> None:
    model = network()
    model.graph.node[1].domain = "nobody"
    model.opset_import.add(domain="nobody", version=1)
    with pytest.raises(CalibrationError, match="ONNX Runtime cannot load the graph"):
        observe_ranges(model, [images(1)], ["a"])
