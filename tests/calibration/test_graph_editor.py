from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from calibration.errors import CalibrationError
from calibration.graph_editor import GraphEditor, shapes_of, without_weights
from tests.helpers.graphs import exported, run


def network() -> onnx.ModelProto:
    """Two products by one weight, which a sum reads too."""
    return onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[n,2] x) => (float[n,2] y) <float[2,2] w = {1,2,3,4}, float[2] unused = {5,6}>
        { [first] a = MatMul (x, w) [second] b = MatMul (a, w) [sum] y = Add (b, w) }"""
    )


X = np.float32([[1, 2], [3, 4]])
W = np.float32([[1, 2], [3, 4]])


def test_one_reader_of_a_shared_constant_is_given_another() -> None:
    graph = GraphEditor(network())
    graph.replace_constant(graph.node("second"), 1, 10 * W)
    np.testing.assert_array_equal(run(graph.finish(), X)["y"], X @ W @ (10 * W) + W)


def test_a_constant_that_a_node_reads_twice_is_shared() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,2] x) => (float[1,2] y) <float[2] w = {1,2}> { [norm] y = LayerNormalization (x, w, w) }"""
    )
    graph = GraphEditor(model)
    graph.replace_constant(graph.node("norm"), 1, np.float32([0, 0]))
    np.testing.assert_array_equal(run(graph.finish(), X[:1])["y"], [[1, 2]])


def test_a_constant_of_its_own_keeps_its_name() -> None:
    graph = GraphEditor(network())
    graph.replace_constant(graph.node("second"), 1, W)
    graph.replace_constant(graph.node("sum"), 1, W.T)
    model = graph.finish()
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "w.2", "w.3"]
    assert list(model.graph.node[0].input) == ["x", "w"]


def test_names_are_fresh() -> None:
    graph = GraphEditor(network())
    assert [graph.unique_name(name) for name in ("first", "a", "x", "w", "new", "new", "new")] == [
        "first.2", "a.2", "x.2", "w.2", "new", "new.2", "new.3",
    ]  # fmt: skip


def test_lookups() -> None:
    graph = GraphEditor(network())
    assert [node.name for node in graph.readers("w")] == ["first", "second", "sum"]
    assert graph.producer("b").name == "second"
    assert graph.producer("x") is None
    assert graph.is_constant("w") and not graph.is_constant("a")
    assert graph.outputs == {"y"}
    with pytest.raises(CalibrationError, match="no node 'nowhere'"):
        graph.node("nowhere")


def test_arrays_are_copies() -> None:
    graph = GraphEditor(network())
    graph.constant("w")[:] = 0
    np.testing.assert_array_equal(graph.constant("w"), W)


def test_finish_drops_unused_constants_and_infers_shapes() -> None:
    before = network()
    graph = GraphEditor(before)
    node = helper.make_node("Relu", ["a"], [graph.unique_name("a/relu")], graph.unique_name("relu"))
    graph.insert_after(graph.node("first"), [node])
    graph.node("second").input[0] = "a/relu"
    graph.insert_before(graph.node("first"), [helper.make_node("Neg", ["x"], ["minus"], "minus")])
    graph.node("first").input[0] = "minus"
    model = graph.finish()
    assert [node.name for node in model.graph.node] == ["minus", "first", "relu", "second", "sum"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    onnx.checker.check_model(model, full_check=True)
    assert shapes_of(model)["a/relu"] == (None, 2)
    assert {value.name for value in model.graph.value_info} == {"minus", "a", "a/relu", "b"}
    np.testing.assert_array_equal(run(model, X)["y"], np.maximum(-X @ W, 0) @ W + W)
    assert before == network()


def test_finish_refuses_a_graph_out_of_order() -> None:
    graph = GraphEditor(network())
    graph.nodes.reverse()
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        graph.finish()


def test_without_weights_infers_the_same_shapes() -> None:
    model = exported("sit", "batch")
    light = without_weights(model)
    assert light.ByteSize() < model.ByteSize() / 5
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    expected = {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    found = shapes_of(model)
    assert {name: found[name] for name in expected} == expected
    for tensor in model.graph.initializer:
        assert found[tensor.name] == tuple(tensor.dims)
