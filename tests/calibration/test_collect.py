from __future__ import annotations

import math
import multiprocessing
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.collect import Observations, collect_observations
from calibration.errors import CalibrationError
from calibration.observers import ChannelObserver, TensorObserver

TENSORS = ["hidden", "images", "tokens"]  # not in the graph's order
CHANNELS = {"tokens": -1, "convolved": 1}


def network(batch: int | str = "n") -> onnx.ModelProto:
    """Convolution, tokens, LayerNormalization and a Linear; the Reshape takes any batch as it comes."""
    generator = np.random.default_rng(0)
    weights = {
        "conv": generator.normal(size=(4, 3, 2, 2)),
        "scale": generator.uniform(0.5, 2, 4),
        "linear": generator.normal(size=(4, 6)),
    }
    initializers = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    ]
    initializers.append(numpy_helper.from_array(np.array([0, 4, -1]), "shape"))
    nodes = [
        helper.make_node("Conv", ["images", "conv"], ["convolved"], strides=[2, 2]),
        helper.make_node("Reshape", ["convolved", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["columns", "scale"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "linear"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 16, 6])],
        initializers,
    )
    # as an exporter would leave them: they must not tie the graph to its batch
    known = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    onnx.checker.check_model(known)
    return known


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def test_equals_a_reference() -> None:
    data = images(5)
    seen = collect_observations(network(), [data[:2], data[2:]], TENSORS, CHANNELS, channel_bits=4)
    assert seen.images == 5
    assert list(seen.tensors) == ["images", "tokens", "hidden"]
    assert list(seen.channels) == ["convolved", "tokens"]
    reference = ReferenceEvaluator(network())
    names = ["images", "convolved", "tokens", "hidden"]
    values = dict(zip(names, reference.run(names, {"images": data}), strict=True))
    for name, observer in seen.tensors.items():
        wanted = values[name]
        assert observer.images == 5
        assert observer.min == pytest.approx(wanted.min(), abs=1e-5)
        assert observer.max == pytest.approx(wanted.max(), abs=1e-5)
        assert observer.mean_absmax == pytest.approx(np.abs(wanted).reshape(5, -1).max(1).mean(), abs=1e-5)
        assert observer.histogram.total == wanted.size
    for name, axis in (("convolved", 1), ("tokens", 2)):
        by_image = np.abs(np.moveaxis(values[name], axis, 1)).reshape(5, 4, -1).max(2)
        np.testing.assert_allclose(seen.channels[name].absmax, by_image.max(0), atol=1e-5)
        np.testing.assert_allclose(seen.channels[name].mean_absmax, by_image.mean(0), atol=1e-5)
        assert seen.channels[name].histogram.total == values[name].size
    exact = TensorObserver()
    for image in data:
        exact.update(image)
    assert seen.tensors["images"] == exact


@given(
    order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), batch=st.sampled_from(["n", 1, 2, 4])
)
@settings(max_examples=20, deadline=None)
def test_order_and_batch_size_do_not_show(order: list[int], cuts: set[int], batch: int | str) -> None:
    data = images(6)
    whole = collect_observations(network(), [data], TENSORS, CHANNELS)
    assert (
        collect_observations(network(batch), np.split(data[order], sorted(cuts)), TENSORS, CHANNELS) == whole
    )


@given(
    owners=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    order=st.permutations(range(3)),
    first=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_shards_add_up(owners: list[int], order: list[int], first: bool) -> None:
    data = images(6)
    shards = []
    for shard in order:
        own = data[np.array(owners) == shard]
        shards.append(
            collect_observations(network(), [own], TENSORS, CHANNELS) if len(own) else Observations()
        )
    a, b, c = shards
    merged = a.merge(b).merge(c) if first else a.merge(b.merge(c))
    assert merged == collect_observations(network(), [data], TENSORS, CHANNELS)


def observe_shard(model: bytes, path: str, shard: np.ndarray) -> None:
    """In a process of its own: observe a shard and leave the arrays in a file."""
    seen = collect_observations(onnx.load_from_string(model), [shard], TENSORS, CHANNELS, channel_bits=3)
    np.savez_compressed(path, **seen.to_arrays())


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    data = images(7)
    model = network().SerializeToString()
    spawn = multiprocessing.get_context("spawn")
    paths = [tmp_path / f"{rank}.npz" for rank in range(2)]
    workers = [
        spawn.Process(target=observe_shard, args=(model, str(path), data[rank::2]))
        for rank, path in enumerate(paths)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    parts = []
    for path in paths:
        with np.load(path) as arrays:  # no pickle
            parts.append(Observations.from_arrays(arrays))
    assert [part.images for part in parts] == [4, 3]
    whole = collect_observations(network(), [data], TENSORS, CHANNELS, channel_bits=3)
    assert parts[0].merge(parts[1]) == whole
    assert parts[1].merge(parts[0]) == whole
    assert parts[0] != whole


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

    collect_observations(network(), stream(), ["tokens", "images"])
    assert len(alive) == 5
    assert max(alive) <= 1


def test_what_is_kept_does_not_grow_with_the_images() -> None:
    sizes = []
    for count in (1, 40):
        data = np.concatenate([images(1)] * count)
        arrays = collect_observations(network(), [data], TENSORS, CHANNELS, channel_bits=3).to_arrays()
        sizes.append(sum(value.nbytes for value in arrays.values()))
    assert sizes[0] == sizes[1]


def test_progress_counts_what_it_is_given() -> None:
    calls: list[tuple[int, int]] = []
    batches = [images(1), images(3)]
    collect_observations(
        network(), batches, ["tokens"], progress=lambda text, done, total: calls.append((done, total))
    )
    collect_observations(
        network(), iter(batches), ["tokens"], progress=lambda text, done, total: calls.append((done, total))
    )
    assert calls == [(1, 2), (2, 2), (1, 0), (2, 0)]


def broken(value: float) -> onnx.ModelProto:
    """The network with one weight of the convolution not finite."""
    model = network()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv")
    values = numpy_helper.to_array(weight).copy()
    values[2, 0, 0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(values, "conv"))
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("tensors", "channels"), [(["hidden"], {}), ([], {"tokens": -1})])
def test_the_first_tensor_that_is_not_finite_is_named(
    value: float, tensors: list[str], channels: dict[str, int]
) -> None:
    # the convolution's output is the first, though nobody observes it
    with pytest.raises(CalibrationError, match=r"tensor 'convolved' .* image 1; .* weights") as raised:
        collect_observations(broken(value), [images(2)], tensors, channels)
    assert "\n" not in str(raised.value)


def test_an_image_that_is_not_finite_is_named() -> None:
    data = images(5)
    data[3, 0, 0, 0] = math.nan
    with pytest.raises(CalibrationError, match=r"tensor 'images' .* image 4; look at the image itself"):
        collect_observations(network(), [data[:3], data[3:]], ["tokens"])


@pytest.mark.parametrize(
    ("batches", "tensors", "channels", "message"),
    [
        ([], ["tokens"], {}, "no images to calibrate on"),
        ([images(0)], ["tokens"], {}, "with N at least 1"),
        ([images(1)[:, :, :7]], ["tokens"], {}, r"the graph takes float32 \(N, 3, 8, 8\)"),
        ([images(1).astype(np.float64)], ["tokens"], {}, "is float64"),
        ([images(1)], ["nowhere"], {}, "no float32 tensor 'nowhere'"),
        ([images(1)], [], {"shape": 0}, "no float32 tensor 'shape'"),
        ([images(1)], [], {"tokens": 3}, "'tokens' has 3 axes; there is no axis 3"),
        ([images(1)], [], {"tokens": -4}, "there is no axis -4"),
    ],
)
def test_bad_input_is_one_line(
    batches: list[np.ndarray], tensors: list[str], channels: dict[str, int], message: str
) -> None:
    with pytest.raises(CalibrationError, match=message) as raised:
        collect_observations(network(), batches, tensors, channels)
    assert "\n" not in str(raised.value)


def test_a_graph_tied_to_its_batch_is_refused() -> None:
    model = network(2)
    shape = next(tensor for tensor in model.graph.initializer if tensor.name == "shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([2, 4, 16]), "shape"))
    with pytest.raises(CalibrationError, match=r"ONNX Runtime cannot (load|run) the graph") as raised:
        collect_observations(model, [images(2)], ["tokens"])
    assert "\n" not in str(raised.value)


def test_the_model_is_left_alone() -> None:
    model = network(2)
    before = model.SerializeToString(deterministic=True)
    collect_observations(model, [images(2)], TENSORS, CHANNELS)
    assert model.SerializeToString(deterministic=True) == before


def test_observations_that_do_not_merge() -> None:
    seen = collect_observations(network(), [images(1)], ["tokens"], {"convolved": 1})
    others = collect_observations(network(), [images(1)], ["hidden"], {"convolved": 1})
    with pytest.raises(CalibrationError, match="different tensors"):
        seen.merge(others)
    other_axis = collect_observations(network(), [images(1)], ["tokens"], {"convolved": 2})
    with pytest.raises(CalibrationError, match="do not merge: observers of other axes"):
        seen.merge(other_axis)


def test_arrays_that_are_not_observations() -> None:
    arrays = collect_observations(network(), [images(1)], ["tokens"]).to_arrays()
    with pytest.raises(CalibrationError, match="lack 'images'"):
        Observations.from_arrays({key: value for key, value in arrays.items() if key != "images"})
    with pytest.raises(CalibrationError, match=re.escape("lack 'min'")):
        Observations.from_arrays({key: value for key, value in arrays.items() if key != "tensors/0/min"})
    with pytest.raises(CalibrationError, match="of format 2; this version reads format 1"):
        Observations.from_arrays(arrays | {"format": np.array(2)})


def test_names_with_slashes_survive_arrays() -> None:
    observer = TensorObserver()
    observer.update(np.ones(3, np.float32))
    channels = ChannelObserver(0)
    channels.update(np.ones((2, 2), np.float32))
    seen = Observations(1, {"a/0/images": observer, "b": observer}, {"tensors/0": channels})
    assert Observations.from_arrays(seen.to_arrays()) == seen
