from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sit_deploy.graph import lint
from sit_deploy.graph.pixels import take_pixels
from sit_deploy.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((16, 24), 24, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.7))


def identity(batch: int | str, opset: int) -> onnx.ModelProto:
    """A graph that gives back what it is given, through a node that reads its input twice."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (batch, 3, 16, 24)) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Max", ["x", "x"], ["y"], "max")], "g", values[:1], values[1:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]


@pytest.mark.parametrize(("batch", "opset"), [(2, 20), ("batch", 20), (2, 17)])
def test_the_graph_normalises_to_the_bit_as_the_preprocessing_does(batch: int | str, opset: int) -> None:
    model = take_pixels(identity(batch, opset), PREPROCESSING)
    # every value of a byte in every channel
    levels = np.resize(np.arange(256, dtype=np.uint8), (2, 16, 24))
    pixels = np.stack([levels, np.roll(levels, 7), np.roll(levels, 99)], axis=-1)
    assert np.array_equal(run(model, pixels), PREPROCESSING.normalise(pixels))
    onnx.checker.check_model(model, full_check=True)
    lint.check(model, max_opset=opset, dynamic_batch=batch == "batch")


def test_layout_is_not_mistaken() -> None:
    model = take_pixels(identity(1, 20), PREPROCESSING)
    for row, column, channel in itertools.product((0, 15), (0, 23), range(3)):
        pixels = np.zeros((1, 16, 24, 3), np.uint8)
        pixels[0, row, column, channel] = 255
        lit = run(model, pixels) - run(model, np.zeros_like(pixels))
        assert np.argwhere(lit).tolist() == [[0, channel, row, column]]


def test_the_graph_given_is_left_as_it_was() -> None:
    before = identity(1, 20)
    copy = before.SerializeToString()
    made = take_pixels(before, PREPROCESSING)
    assert before.SerializeToString() == copy
    (images,) = made.graph.input
    assert (images.name, images.type.tensor_type.elem_type) == ("x", TensorProto.UINT8)
    assert [d.dim_value for d in images.type.tensor_type.shape.dim] == [1, 16, 24, 3]
    assert made.graph.node[0].op_type == "Cast"  # TensorRT does nothing else with a uint8 input
