from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.openvino.projections import split_projections

pytest.importorskip("torch", reason="needs PyTorch for its models")
from tests.helpers.graphs import MODELS, exported, images_for, run


def splits(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Split" for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_stay(name: str) -> None:
    model = exported(name)
    (image, *_) = images_for(model)
    before, there = run(model, image), splits(model)
    assert split_projections(model) == there - splits(model) > 0
    onnx.checker.check_model(model)
    after = run(model, image)
    scale = before["logits"].std()
    assert np.abs(after["logits"] - before["logits"]).max() < 1e-5 * scale
    assert split_projections(model) == 0  # nothing is left to do


def projection(sizes: tuple[int, ...], bias: bool, quantized: bool, axis: int) -> onnx.ModelProto:
    """x (1, 3, 4) times constant weights (4, 12), perhaps of 8 bits, perhaps plus a bias, split into `sizes`."""
    random = np.random.default_rng(0)
    nodes, tensors = [], [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")]
    weight = "w"
    if quantized:
        tensors.append(numpy_helper.from_array(random.integers(-127, 128, (4, 12)).astype(np.int8), "codes"))
        tensors.append(numpy_helper.from_array(random.random(12).astype(np.float32), "scale"))
        tensors.append(numpy_helper.from_array(np.zeros(12, np.int8), "zero"))
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], "low", axis=1))
    else:
        tensors.append(numpy_helper.from_array(random.standard_normal((4, 12)).astype(np.float32), "w"))
    nodes.append(helper.make_node("MatMul", ["x", weight], ["y"], "product"))
    if bias:
        tensors.append(numpy_helper.from_array(random.standard_normal(12).astype(np.float32), "b"))
        nodes.append(helper.make_node("Add", ["y", "b"], ["z"], "bias"))
    parts = [f"part{i}" for i in range(len(sizes))]
    nodes.append(helper.make_node("Split", ["z" if bias else "y", "sizes"], parts, "split", axis=axis))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4))],
        [
            helper.make_tensor_value_info(part, TensorProto.FLOAT, (1, 3, size))
            for part, size in zip(parts, sizes, strict=True)
        ],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 9, 1)])
def test_a_product_and_its_parts(sizes: tuple[int, ...], bias: bool, quantized: bool, axis: int) -> None:
    model = projection(sizes, bias, quantized, axis)
    x = np.random.default_rng(1).standard_normal((1, 3, 4)).astype(np.float32)
    before = run(model, x)
    assert split_projections(model) == 1
    onnx.checker.check_model(model, full_check=True)
    after = run(model, x)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-6)
    assert splits(model) == 0 and not {t.name for t in model.graph.initializer} & {
        "w",
        "codes",
        "scale",
        "sizes",
    }


def test_what_is_left_alone() -> None:
    whole = projection((4, 4, 4), False, False, -1)

    def changed(change) -> onnx.ModelProto:
        model = copy.deepcopy(whole)
        change(model.graph)
        return model

    def read_elsewhere(graph: onnx.GraphProto) -> None:
        graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))

    def along_tokens(graph: onnx.GraphProto) -> None:
        graph.node[-1].attribute[0].i = 1

    def weights_computed(graph: onnx.GraphProto) -> None:
        graph.node.insert(0, helper.make_node("Neg", ["w"], ["v"]))
        graph.node[1].input[1] = "v"

    for change in (read_elsewhere, along_tokens, weights_computed):
        model = changed(change)
        before = model.SerializeToString()
        assert split_projections(model) == 0 and model.SerializeToString() == before
